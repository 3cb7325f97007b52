"""What Hydra composes, kept: composing takes 150 ms of processor time, a copy with other values 6 ms."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import fields
from functools import lru_cache
from typing import TYPE_CHECKING

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import OverrideType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from engine.assembly.typed_overrides import parse
from engine.config import Config
from engine.plugin import manager

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

CONF = "engine.conf"

#: Keys of the top that are values, not groups with names to choose from: "resolution", "device", ...
_VALUES = frozenset(field.name for field in fields(Config) if field.type in ("str", "int", "float", "bool"))


class Compositions:
    """What Hydra composed, unresolved, for the last few sets of choices (`sampler=turbo`).

    Single values (`sampler.steps=4`) are merged into a copy of it, as Hydra merges them. No two calls share a config.
    """

    #: Number of sets of choices, about 100 kB each.
    MAX_CACHED = 32

    def __init__(self) -> None:
        self.cached: OrderedDict[tuple[str, ...], DictConfig] = OrderedDict()
        self._lock = threading.Lock()

    def compose(self, words: Sequence[str]) -> DictConfig:
        """Return what Hydra composes of `words`. Raises Hydra's and OmegaConf's errors, as Hydra does."""
        values = [_value(word) for word in words]
        choices = tuple(word for word, value in zip(words, values, strict=True) if value is None)
        # What is no plain choice (`+a.b=1`, `~a`, `a=1,2`), and what an application of Hydra composes, is Hydra's.
        if any("." in word.partition("=")[0] or word[:1] in "+~" for word in choices) or _started():
            return _compose(words)
        with self._lock:
            kept = self.cached.get(choices)
            if kept is None:
                kept = self.cached[choices] = _compose(choices)
            self.cached.move_to_end(choices)
            while len(self.cached) > self.MAX_CACHED:
                self.cached.popitem(last=False)
            composed = deepcopy(kept)
        try:
            for value in values:
                if value is not None:
                    OmegaConf.update(composed, value.key_or_group, value.value(), merge=True)
        except (HydraException, OmegaConfBaseException, AssertionError, ValueError, TypeError):
            # Hydra's own error describes the problem.
            return _compose(words)
        return composed


def compositions() -> Compositions:
    """Return those of this process, for the plugins that are installed."""
    return _of(manager.installed())


@lru_cache(maxsize=1)
def _of(_: manager.Registry) -> Compositions:
    return Compositions()


@contextmanager
def hydra_started() -> Iterator[None]:
    """Let Hydra find the engine's configs, unless it runs an application already."""
    if _started():
        yield
        return
    with hydra.initialize_config_module(CONF, version_base="1.3"):
        yield


def _started() -> bool:
    return bool(GlobalHydra.instance().is_initialized())


def _compose(words: Sequence[str]) -> DictConfig:
    with hydra_started():
        return hydra.compose("config", list(words))


def _value(word: str) -> Override | None:
    """Return a word that sets a value of the config as Hydra parses it; None for a choice and for what is not plain."""
    override = parse(word)
    if override is None or override.type is not OverrideType.CHANGE or override.package is not None:
        return None
    key = str(override.key_or_group)
    if override.is_sweep_override() or key.partition(".")[0] == "hydra" or not ("." in key or key in _VALUES):
        return None
    return override
