"""First-block cache of diffusers: skip the other blocks while the first one's residual has changed little."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from engine import hookimpl
from engine.components import Agree, CacheCost, StepCache
from engine.config import CacheConfig, within
from engine.errors import ConfigError
from engine.plugin.register import Register


@dataclass
class FirstBlockCacheConfig(CacheConfig):
    """First-block cache of diffusers: skip the other blocks while the first one's residual has changed little."""

    name: str = "firstblock"
    #: Relative change of the first block's residual below which the other blocks are skipped.
    threshold: float = field(default=0.05, metadata=within(0, 100))


class FirstBlockCache:
    """Diffusers' FirstBlockCache. Raises ConfigError for a threshold below 0."""

    def __init__(self, config: FirstBlockCacheConfig) -> None:
        if not config.threshold >= 0:
            what = f"a threshold of {config.threshold:g}"
            raise ConfigError(what, field="cache.threshold", hint="0.05 to 0.2 is useful")
        self._threshold = config.threshold
        self._cache: Any = None

    def shared(self, agree: Agree) -> StepCache:
        """Raise ConfigError: diffusers would decide by the tokens of one process."""
        raise ConfigError(
            "firstblock needs all tokens to decide, and each process has only a part of them",
            field="cache.name",
            hint="choose teacache, taylorseer or none with parallel=ulysses",
        )

    def cost(self, *, branches: int, tokens: int, channels: int, blocks: int) -> CacheCost:
        """Three tensors of all tokens for each branch; each branch decides by itself.

        They are the output of the first block, and the residuals of the first and of the other blocks.
        """
        return CacheCost(kept=3 * branches * tokens * channels * 4, reads=branches)

    def attach(self, transformer: Any) -> AbstractContextManager[None]:
        from diffusers import FirstBlockCacheConfig as Settings

        from engine.network.diffusers_cache import DiffusersCache

        if len(transformer.blocks) < 2:
            raise ConfigError(
                "the network has only one block, so there are no others to skip",
                field="cache",
                hint="choose cache=none",
            )
        self._cache = DiffusersCache(Settings(threshold=self._threshold))
        return self._cache.attach(transformer)  # type: ignore[no-any-return]

    @property
    def skipped(self) -> int:
        """The number of forwards of this window so far that were skipped."""
        return 0 if self._cache is None else self._cache.skipped

    def branch(self, name: str, step: int) -> AbstractContextManager[None]:
        return self._cache.branch(name, step)  # type: ignore[no-any-return]


@hookimpl
def register_caches(register: Register[StepCache]) -> None:
    register(FirstBlockCache, FirstBlockCacheConfig)
