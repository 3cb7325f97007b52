"""MagCache: skip the blocks while the magnitude of what they add has changed little, as measured beforehand."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from omegaconf import II

from engine import hookimpl
from engine.components import Agree, CacheCost, StepCache
from engine.config import CacheConfig, within
from engine.network.step_caches import ResidualCache, out_of_range
from engine.plugin.register import Register

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class MagCacheConfig(CacheConfig):
    """MagCache (arXiv 2506.09045): skip the blocks while their measured residual changes little."""

    name: str = "magcache"
    #: Accumulated error of the magnitude that forces a computed step; 0.02 .. 0.2 is useful.
    threshold: float = field(default=0.12, metadata=within(1e-6, 100))
    #: Maximum steps that are skipped one after the other.
    skips: int = field(default=3, metadata=within(1, 1000))
    #: First steps that are always computed.
    warmup: int = field(default=4, metadata=within(1, 1000))
    #: Measured magnitudes of the blocks' residual at equal distances of time, from 1000 down to 0.
    magnitudes: list[float] = field(default=II("model.resolutions.${resolution}.magcache"), metadata=within(1e-6, 1e6))


class MagCache(ResidualCache):
    """MagCache (arXiv 2506.09045): skip the blocks while the magnitude of their residual has changed little.

    The magnitude depends on the time and hardly on the prompt, so it is measured once for a model. The published
    implementation has one ratio for each step of one schedule; here magnitudes are a function of time, so that one
    measurement serves every number of steps, shift and sampler. The decision reads nothing from the device. All
    branches of a step share it. Raises ConfigError for a value out of range.
    """

    def __init__(self, config: MagCacheConfig) -> None:
        if len(config.magnitudes) < 2:
            what = "no magnitudes were measured for this model"
            hint = "measure them with python -m scripts.evaluate_tiny magnitudes, or choose another cache"
            raise out_of_range("magnitudes", what, hint)
        if not all(math.isfinite(value) and value > 0 for value in config.magnitudes):
            raise out_of_range("magnitudes", f"{list(config.magnitudes)} are not magnitudes", "give numbers above 0")
        if not config.threshold > 0:
            raise out_of_range("threshold", f"a threshold of {config.threshold:g}", "0.02 to 0.2 is useful")
        if not config.skips >= 1:
            raise out_of_range("skips", f"{config.skips} skipped steps", "give 1 or more")
        if not config.warmup >= 1:
            # The first step must compute the residual that replaces the blocks later.
            raise out_of_range("warmup", f"{config.warmup} warm-up steps", "give 1 or more")
        self.threshold, self.skips, self.warmup = config.threshold, config.skips, config.warmup
        self._logarithms = tuple(math.log(value) for value in config.magnitudes)
        super().__init__()

    def shared(self, agree: Agree) -> Self:
        """Return itself: it decides by time, which all processes share."""
        return self

    def cost(self, *, branches: int, tokens: int, channels: int, blocks: int) -> CacheCost:
        """One residual for each branch and, within a forward pass, the input of the blocks; nothing is read."""
        return CacheCost(kept=(branches + 1) * tokens * channels * 4)

    def at(self, time: float) -> None:
        """Set the time, 0 .. 1000, of the following forwards."""
        self._time = time

    def reset(self) -> None:
        super().reset()
        self._time = 1000.0
        #: Logarithm of the magnitude at the last computed step, sum of errors since then, and skipped steps.
        self._reference = 0.0
        self._error = 0.0
        self._skips = 0

    def must_compute(self, signal: Tensor) -> bool:
        """Return whether the summed error of reusing the residual reaches the threshold."""
        now = self.magnitude(self._time)
        if self._step >= self.warmup:
            self._error += abs(1 - math.exp(now - self._reference))
            self._skips += 1
            if self._error < self.threshold and self._skips <= self.skips:
                return False
        self._reference, self._error, self._skips = now, 0.0, 0
        return True

    def magnitude(self, time: float) -> float:
        """Return the logarithm of the measured magnitude at a time of 0 .. 1000."""
        place = min(max(1 - time / 1000, 0.0), 1.0) * (len(self._logarithms) - 1)
        index = min(int(place), len(self._logarithms) - 2)
        before, after = self._logarithms[index : index + 2]
        return before + (after - before) * (place - index)


@hookimpl
def register_caches(register: Register[StepCache]) -> None:
    register(MagCache, MagCacheConfig)
