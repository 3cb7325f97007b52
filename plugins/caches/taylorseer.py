"""TaylorSeer cache of diffusers, lite mode: predict the network's output between computed steps."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from engine import hookimpl
from engine.components import Agree, CacheCost, StepCache
from engine.config import CacheConfig, within
from engine.network.step_caches import out_of_range
from engine.plugin.register import Register


@dataclass
class TaylorSeerConfig(CacheConfig):
    """TaylorSeer cache of diffusers, lite mode: predict the network's output between computed steps."""

    name: str = "taylorseer"
    #: One step of this many is computed.
    interval: int = field(default=3, metadata=within(1, 1000))
    #: First steps that are always computed.
    warmup: int = field(default=3, metadata=within(1, 1000))
    #: Order of the Taylor series that predicts the steps between.
    order: int = field(default=1, metadata=within(0, 4))


class TaylorSeerCache:
    """Diffusers' TaylorSeer cache (arXiv 2503.06923). Raises ConfigError for a value out of range."""

    def __init__(self, config: TaylorSeerConfig) -> None:
        if config.interval < 1:
            raise out_of_range("interval", f"an interval of {config.interval}", "give 1 or more")
        if not 0 <= config.order <= 4:
            raise out_of_range("order", f"order {config.order}", "give 0 to 4")
        if not config.warmup > config.order:
            what = f"{config.warmup} warm-up steps for order {config.order}"
            raise out_of_range("warmup", what, f"give {config.order + 1} or more")
        self._config = config
        self._cache: Any = None

    def shared(self, agree: Agree) -> StepCache:
        """Return itself: it decides by the number of the step, which all processes share."""
        return self

    def cost(self, *, branches: int, tokens: int, channels: int, blocks: int) -> CacheCost:
        """Count nothing: the outputs of the last projection are small compared with a tensor of all tokens."""
        return CacheCost()

    def attach(self, transformer: Any) -> AbstractContextManager[None]:
        import torch
        from diffusers import TaylorSeerCacheConfig

        from engine.network.diffusers_cache import DiffusersCache

        settings = TaylorSeerCacheConfig(
            cache_interval=self._config.interval,
            disable_cache_before_step=self._config.warmup,
            max_order=self._config.order,
            # float32, because only the small output of the last projection is stored.
            taylor_factors_dtype=torch.float32,
            use_lite_mode=True,
        )
        self._cache = DiffusersCache(settings)
        return self._cache.attach(transformer)  # type: ignore[no-any-return]

    @property
    def skipped(self) -> int:
        """The number of forwards of this window so far that were skipped."""
        return 0 if self._cache is None else self._cache.skipped

    def branch(self, name: str, step: int) -> AbstractContextManager[None]:
        return self._cache.branch(name, step)  # type: ignore[no-any-return]


@hookimpl
def register_caches(register: Register[StepCache]) -> None:
    register(TaylorSeerCache, TaylorSeerConfig)
