"""EasyCache: skip whole forwards while the output is expected to change little, without any measurement beforehand."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engine import hookimpl
from engine.components import CacheCost, StepCache
from engine.config import CacheConfig, within
from engine.network.step_caches import OutputCache, join, out_of_range
from engine.plugin.register import Register

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class EasyCacheConfig(CacheConfig):
    """EasyCache (arXiv 2507.02860): skip whole forwards while their output changes little; needs no measurement."""

    name: str = "easycache"
    #: Accumulated relative change of the output that forces a computed step; 0.02 .. 0.2 is useful.
    threshold: float = field(default=0.05, metadata=within(1e-6, 100))
    #: First steps that are always computed.
    warmup: int = field(default=5, metadata=within(2, 1000))


class EasyCache(OutputCache):
    """EasyCache (arXiv 2507.02860): estimate a forward by its input plus the last difference of output and input.

    From one computed step to the next, the change of the output divided by that of the input is nearly constant. It
    predicts how far the output changes, from the change of the latents. The first branch of a step decides for all.
    Raises ConfigError for a value out of range.
    """

    def __init__(self, config: EasyCacheConfig) -> None:
        if not config.threshold > 0:
            raise out_of_range("threshold", f"a threshold of {config.threshold:g}", "0.02 to 0.2 is useful")
        if not config.warmup >= 2:
            # The rate of change needs two computed steps.
            raise out_of_range("warmup", f"{config.warmup} warm-up steps", "give 2 or more")
        self.threshold = config.threshold
        self.warmup = config.warmup
        super().__init__()

    def cost(self, *, branches: int, tokens: int, channels: int, blocks: int) -> CacheCost:
        """One value is read; latents and outputs are not counted, as they are small compared with all tokens."""
        return CacheCost(reads=1)

    def reset(self) -> None:
        super().reset()
        self._accumulated = 0.0
        #: Latents of the step before; latents and output of the deciding branch when it was last computed.
        self._before: Tensor | None = None
        self._computed: tuple[Tensor, Tensor] | None = None
        self._decider = ""
        #: Change of the output divided by the change of the input.
        self._rate: Tensor | None = None
        self._differences: dict[str, Tensor] = {}

    def reset_tensors(self) -> None:
        self._before = self._computed = self._rate = None
        self._differences.clear()

    def remembers(self, branch: str) -> bool:
        return branch in self._differences

    def must_compute(self, signal: Tensor) -> bool:
        """Return whether the predicted changes of the output since the last computed step reach the threshold."""
        before, self._before = self._before, signal
        if self._branches[0] != self._decider:
            # Another branch's rate says nothing about this one.
            self._decider, self._computed, self._rate = self._branches[0], None, None
        if self._step >= self.warmup and before is not None and self._rate is not None and self._computed is not None:
            change = (signal - before).abs().mean() * self._rate / self._computed[1].abs().mean()
            self._accumulated += float(change)
            if self._accumulated < self.threshold:
                return False
        self._accumulated = 0.0
        return True

    def recall(self, latents: Tensor) -> Tensor:
        return latents + join([self._differences[branch] for branch in self._branches])

    def learn(self, latents: Tensor, output: Tensor) -> None:
        self._differences |= zip(self._branches, (output - latents).chunk(len(self._branches)), strict=True)
        if self._branches[0] != self._decider:
            return
        output = output[:1]
        if self._computed is not None:
            inputs, outputs = self._computed
            self._rate = (output - outputs).abs().mean() / (latents - inputs).abs().mean().clamp(min=1e-12)
        self._computed = latents, output


@hookimpl
def register_caches(register: Register[StepCache]) -> None:
    register(EasyCache, EasyCacheConfig)
