"""Which weights a config needs, and in which folder they are. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engine.components import FetchingSource
from engine.config import Config, FolderConfig
from engine.data import Weights
from engine.errors import MissingExtra, MissingWeights, SourceError
from engine.hub.offers import offers
from engine.plugin.manager import Registry


@dataclass(frozen=True)
class Location:
    """A source's answer for a config: the folder of the weights, or the problem."""

    folder: Path | None
    problem: SourceError | MissingExtra | None = None


class WeightsFinder:
    """Locates weights for one request. Each source is asked only once for the same weights."""

    def __init__(self, registry: Registry, *, loaded: Path | None = None) -> None:
        """Ask no source yet. `loaded` is the folder of weights in memory; no source is asked then."""
        self._registry = registry
        self._loaded = None if loaded is None else Location(loaded)
        self._answers: list[tuple[Any, Location]] = []

    def find(self, config: Config) -> Location:
        """Return where the weights of `config` are; changes nothing. Raises ConfigError for the source."""
        if self._loaded is not None:
            return self._loaded
        key = _key(config)
        # A list, because configs cannot be hashed; there are few.
        answer = next((answer for asked_key, answer in self._answers if asked_key == key), None)
        if answer is None:
            answer = self._ask(config)
            self._answers.append((key, answer))
        return answer

    def folder(self, config: Config) -> Path:
        """Return the folder of the weights. Raises MissingWeights, which says where the engine looked."""
        location = self.find(config)
        if location.folder is None:
            assert location.problem is not None
            raise location.problem
        return location.folder

    def fetch(self, config: Config) -> Path:
        """Do as `folder`, but let a source that can download fetch missing weights."""
        location = self.find(config)
        source = self._registry.sources.build(config.source) if location.folder is None else None
        if isinstance(source, FetchingSource) and (folder := source.fetch(weights_of(config))) is not None:
            self._answers = [(asked_key, answer) for asked_key, answer in self._answers if answer is not location]
            self._answers.append((_key(config), Location(folder)))
        return self.folder(config)

    def _ask(self, config: Config) -> Location:
        weights = weights_of(config)
        source = self._registry.sources.build(config.source)
        try:
            folder = source.locate(weights)
        except (SourceError, MissingExtra) as error:
            # Without its traceback, whose frames refer to this finder.
            return Location(None, error.with_traceback(None))
        if folder is not None:
            return Location(folder)
        missing = MissingWeights(
            f"no weights for the model {config.model.name!r}",
            # The chain joins the answers of its sources with semicolons.
            looked=source.looked(weights).split("; "),
            commands=weights.commands,
            hint="choose another source or model",
        )
        return Location(None, missing)


def locate_weights(config: Config, registry: Registry, *, fetch: bool = False) -> Path:
    """Return the folder of the model's weights. Raises MissingWeights, which says where the engine looked and
    what to do.

    With `fetch`, a source that can download fetches missing weights; without it, nothing changes. To ask more than once
    per request, use a `WeightsFinder`.
    """
    finder = WeightsFinder(registry)
    return finder.fetch(config) if fetch else finder.folder(config)


def weights_of(config: Config) -> Weights:
    """Return which weights a config needs."""
    model, commands = config.model, _commands(config)
    return Weights(
        model.name,
        model.folder,
        config.family.components,
        packaged=model.packaged,
        command=commands[0][0] if commands else "",
        commands=commands,
        adapter=model.adapter,
        quant=config.quant.form,
        file=config.quant.file,
        find=type(config.family).find_parts,
    )


def _commands(config: Config) -> tuple[tuple[str, str], ...]:
    model, source = config.model, config.source
    if model.packaged or model.command:
        return ((model.command, ""),) if model.command else ()
    into = Path(source.path).expanduser() if isinstance(source, FolderConfig) else None
    words = {"model": model.name, "model.folder": model.folder, "quant": config.quant.form}
    return offers(words | {"resolution": config.resolution}, into)


def _key(config: Config) -> Any:
    # Without the commands, which only appear in errors; all other fields affect a source's answer.
    return config.source, replace(weights_of(config), command="", commands=())
