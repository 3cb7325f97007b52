"""The first of several sources that has the model."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

from engine import hookimpl
from engine.components import FetchingSource, ModelSource
from engine.config import ComponentConfig
from engine.data import Weights
from engine.errors import ConfigError, SourceError
from engine.plugin.register import Register

logger = logging.getLogger(__name__)


_BUNDLED = ("cached", "volume", "hub", "packaged")


@dataclass
class AutoConfig(ComponentConfig):
    """The first of source.chain that has the model; with source.download=true it is downloaded if none has it."""

    name: str = "auto"
    #: Names of sources, in the order in which they are tried.
    chain: list[str] = field(default_factory=lambda: list(_BUNDLED))
    #: Download weights that are missing, or incomplete on the volume.
    download: bool = False


class Auto:
    """Asks each source of the chain in turn. The search ends with an error at a source that has incomplete weights."""

    def __init__(self, config: AutoConfig, register: Register[ModelSource]) -> None:
        if config.name in config.chain:
            raise ConfigError("the chain contains itself", field="source.chain", hint="name other sources")
        if not config.chain:
            raise ConfigError("the chain is empty", field="source.chain", hint="name sources, e.g. [volume]")
        chain = [*config.chain, *(["download"] if config.download and "download" not in config.chain else [])]
        # A bundled source may be disabled, and is then skipped; any other unknown name is an error.
        chain = [name for name in chain if name in register.names() or name not in _BUNDLED]
        self.sources = {name: register.build_default(name) for name in chain}

    def locate(self, weights: Weights) -> Path | None:
        """Return the first folder found, or None if no source has the model. Raises SourceError."""
        for name, source in self.sources.items():
            folder = source.locate(weights)
            if folder is not None:
                logger.info("source %s has the weights of %s: %s", name, weights.model, folder)
                return folder
        return None

    def fetch(self, weights: Weights) -> Path | None:
        """Do as `locate`; the first source that can download fetches missing or incomplete weights.

        Raises SourceError.
        """
        incomplete: SourceError | None = None
        try:
            folder = self.locate(weights)
        except SourceError as error:
            folder, incomplete = None, error
        if folder is not None:
            return folder
        for name, source in self.sources.items():
            if isinstance(source, FetchingSource) and (folder := source.fetch(weights)) is not None:
                logger.info("source %s fetched the weights of %s: %s", name, weights.model, folder)
                return folder
        if incomplete is not None:
            raise incomplete
        return None

    def looked(self, weights: Weights) -> str:
        """Return where each source of the chain looked."""
        return "; ".join(f"{name}: {source.looked(weights)}" for name, source in self.sources.items())


@hookimpl
def register_sources(register: Register[ModelSource]) -> None:
    """Offer the chain; the same register builds its members."""
    register(lambda config: Auto(config, register), AutoConfig)
