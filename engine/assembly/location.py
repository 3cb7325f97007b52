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

COMPONENTS = ("transformer", "vae", "text_encoder", "tokenizer", "image_encoder", "audio_encoder")


@dataclass(frozen=True)
class Location:
    """What a source answers for a config: the folder of the weights, or why there is none."""

    folder: Path | None
    problem: SourceError | MissingExtra | None = None


class WeightsFinder:
    """Locates weights for one request: each source is asked once for the same weights, however many ask here."""

    def __init__(self, registry: Registry, *, loaded: Path | None = None) -> None:
        """Ask no source yet. `loaded` is the folder of weights that are in memory: then no source is asked at all."""
        self._registry = registry
        self._loaded = None if loaded is None else Location(loaded)
        self._answers: list[tuple[Any, Location]] = []

    def find(self, config: Config) -> Location:
        """Return where the weights of `config` are; changes nothing anywhere. Raises ConfigError for the source."""
        if self._loaded is not None:
            return self._loaded
        key = _key(config)
        # Configs cannot be hashed, and there are few.
        answer = next((answer for asked, answer in self._answers if asked == key), None)
        if answer is None:
            answer = self._ask(config)
            self._answers.append((key, answer))
        return answer

    def folder(self, config: Config) -> Path:
        """Return the folder of the weights. Raises MissingWeights naming where was looked and what would help."""
        location = self.find(config)
        if location.folder is None:
            assert location.problem is not None
            raise location.problem
        return location.folder

    def fetch(self, config: Config) -> Path:
        """Do as `folder`, but have weights that are not there brought by a source that may do so."""
        location = self.find(config)
        source = self._registry.sources.build(config.source) if location.folder is None else None
        if isinstance(source, FetchingSource) and (folder := source.fetch(weights_of(config))) is not None:
            self._answers = [(asked, answer) for asked, answer in self._answers if answer is not location]
            self._answers.append((_key(config), Location(folder)))
        return self.folder(config)

    def _ask(self, config: Config) -> Location:
        weights = weights_of(config)
        source = self._registry.sources.build(config.source)
        try:
            folder = source.locate(weights)
        except (SourceError, MissingExtra) as error:
            # Without its frames, which hold this finder.
            return Location(None, error.with_traceback(None))
        if folder is not None:
            return Location(folder)
        missing = MissingWeights(
            f"no weights for the model {config.model.name!r}",
            # As the chain joins what its sources say.
            looked=source.looked(weights).split("; "),
            commands=weights.commands,
            hint="choose another source or model",
        )
        return Location(None, missing)


def locate_weights(config: Config, registry: Registry, *, fetch: bool = False) -> Path:
    """Return the folder of the model's weights. Raises MissingWeights naming where was looked and what would help.

    With `fetch` a source that may get weights does so; without it nothing is changed anywhere. Whoever asks more than
    once for a request keeps a `WeightsFinder`.
    """
    finder = WeightsFinder(registry)
    return finder.fetch(config) if fetch else finder.folder(config)


def weights_of(config: Config) -> Weights:
    """Return which weights a config needs."""
    model, commands = config.model, _commands(config)
    return Weights(
        model.name,
        model.folder,
        COMPONENTS,
        packaged=model.packaged,
        command=commands[0][0] if commands else "",
        commands=commands,
        adapter=model.adapter,
        quant=config.quant.name,
        file=config.quant.file,
    )


def _commands(config: Config) -> tuple[tuple[str, str], ...]:
    model, source = config.model, config.source
    if model.packaged or model.command:
        return ((model.command, ""),) if model.command else ()
    into = Path(source.path).expanduser() if isinstance(source, FolderConfig) else None
    words = {"model": model.name, "model.folder": model.folder, "quant": config.quant.name}
    return offers(words | {"resolution": config.resolution}, into)


def _key(config: Config) -> Any:
    # The commands are words for an error; all else decides what a source answers.
    return config.source, replace(weights_of(config), command="", commands=())
