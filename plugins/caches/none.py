"""No step cache: every forward is computed."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from engine import hookimpl
from engine.components import Agree, CacheCost, StepCache
from engine.config import CacheConfig
from engine.plugin.register import Register


@dataclass
class NoneConfig(CacheConfig):
    """No step cache: every forward is computed."""

    name: str = "none"


class NoCache:
    """Computes everything."""

    #: The number of forwards that were skipped.
    skipped = 0

    def __init__(self, config: NoneConfig) -> None:
        pass

    def shared(self, agree: Agree) -> StepCache:
        """Return itself: nothing is decided."""
        return self

    def attach(self, transformer: Any) -> AbstractContextManager[None]:
        return nullcontext()

    def branch(self, name: str, step: int) -> AbstractContextManager[None]:
        return nullcontext()

    def cost(self, *, branches: int, tokens: int, channels: int, blocks: int) -> CacheCost:
        return CacheCost()


@hookimpl
def register_caches(register: Register[StepCache]) -> None:
    register(NoCache, NoneConfig)
