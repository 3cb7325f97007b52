"""TeaCache (arXiv 2411.19108): skip the blocks while the time embedding has changed little."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from omegaconf import II

from engine import hookimpl
from engine.components import CacheCost, StepCache
from engine.config import CacheConfig, within
from engine.network.step_caches import ResidualCache, out_of_range
from engine.plugin.register import Register

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class TeaCacheConfig(CacheConfig):
    """TeaCache (arXiv 2411.19108): skip the blocks while the time embedding has changed little."""

    name: str = "teacache"
    #: Accumulated relative change that forces a computed step; 0.2 .. 0.5 is useful.
    threshold: float = field(default=0.2, metadata=within(1e-6, 100))
    #: First steps that are always computed.
    warmup: int = field(default=5, metadata=within(1, 1000))
    #: Polynomial from the change of the time embedding to that of the output, highest power first.
    coefficients: list[float] = field(
        default=II("model.resolutions.${resolution}.teacache"), metadata=within(-1e9, 1e9)
    )


class TeaCache(ResidualCache):
    """TeaCache (arXiv 2411.19108): skip the blocks while the time embedding has changed little.

    The modulated time embedding does not depend on the conditions, so all branches of a step share one decision and
    each keeps its own residual (what the blocks added to their input when last computed). Raises ConfigError for a
    value out of range.
    """

    def __init__(self, config: TeaCacheConfig) -> None:
        if not config.coefficients:
            raise out_of_range("coefficients", "no coefficients were measured for this model", "choose another cache")
        if not config.threshold > 0:
            raise out_of_range("threshold", f"a threshold of {config.threshold:g}", "0.2 to 0.5 is useful")
        if not config.warmup >= 1:
            # The first step must compute the residual that replaces the blocks later.
            raise out_of_range("warmup", f"{config.warmup} warm-up steps", "give 1 or more")
        self.threshold = config.threshold
        self.warmup = config.warmup
        self.coefficients = tuple(config.coefficients)
        super().__init__()

    def cost(self, *, branches: int, tokens: int, channels: int, blocks: int) -> CacheCost:
        """One residual for each branch and, within a forward pass, the input of the blocks; one decision for all."""
        return CacheCost(kept=(branches + 1) * tokens * channels * 4, reads=1)

    def reset(self) -> None:
        super().reset()
        self._accumulated = 0.0
        self._signal: Tensor | None = None

    def must_compute(self, signal: Tensor) -> bool:
        """Return whether the time modulation has changed enough since the last computed step."""
        before, self._signal = self._signal, signal
        if self._step >= self.warmup and before is not None:
            change = float((signal - before).abs().mean() / before.abs().mean())
            estimate = 0.0
            for coefficient in self.coefficients:
                estimate = estimate * change + coefficient
            self._accumulated += estimate
            if self._accumulated < self.threshold:
                return False
        self._accumulated = 0.0
        return True

    def _release(self) -> None:
        super()._release()
        self._signal = None


@hookimpl
def register_caches(register: Register[StepCache]) -> None:
    register(TeaCache, TeaCacheConfig)
