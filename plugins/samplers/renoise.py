"""Jump to the clean estimate and add new noise: the solver of models distilled to a few steps, such as FlashTalk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine import hookimpl
from engine.components import ExtendedSchedule, Sampler, StepTools
from engine.config import SamplerConfig
from engine.plugin.register import Register

if TYPE_CHECKING:
    from torch import Tensor


#: Numbers of steps with published times of their own.
_DISTILLED = (2, 4)


@dataclass
class RenoiseConfig(SamplerConfig):
    """Renoise: one evaluation per step, and new noise after each, from the request's own generator."""

    name: str = "renoise"


class Renoise:
    """Sampler over the public implementation's times, shifted. Raises ConfigError for steps or shift out of range.

    For 2 and 4 steps, for which SoulX-FlashTalk was distilled, they are 1000 * (steps - k) / steps; for other numbers
    linspace(1000, 1, steps).
    """

    def __init__(self, config: RenoiseConfig) -> None:
        config.check()
        self.steps = config.steps
        self.shift = config.shift

    def schedule(self) -> ExtendedSchedule:
        """Return a fresh schedule."""
        return _RenoiseSchedule(self.steps, self.shift)


class _RenoiseSchedule:
    def __init__(self, steps: int, shift: float) -> None:
        import numpy as np

        # In float32, as the public implementation calculates them.
        even = np.linspace(1000, 1000 / steps if steps in _DISTILLED else 1, steps, dtype=np.float32) / np.float32(1000)
        times = np.float32(shift) * even / (1 + np.float32(shift - 1) * even) * np.float32(1000)
        self.timesteps: Sequence[float] = (*times.tolist(), 0.0)

    def step_with(self, velocity: Tensor, index: int, latents: Tensor, tools: StepTools) -> Tensor:
        """Make one step. Noise is drawn in the last one too, whose weight is 0, so that a seed's order is published."""
        now, following = self.timesteps[index] / 1000, self.timesteps[index + 1] / 1000
        return (latents - now * velocity).mul_(1 - following).add_(tools.noise(), alpha=following)


@hookimpl
def register_samplers(register: Register[Sampler]) -> None:
    register(Renoise, RenoiseConfig)
