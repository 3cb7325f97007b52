"""Heun's method along the flow-matching schedule: second order, with two evaluations of the network per step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine import hookimpl
from engine.components import CountedSampler, ExtendedSchedule, StepTools
from engine.config import SamplerConfig
from engine.plugin.register import Register

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class HeunConfig(SamplerConfig):
    """Heun: two evaluations per step (one in the last), second order. Not the solver of the public implementation."""

    name: str = "heun"


class Heun:
    """Heun's method: the trapezoidal rule over Euler's guess. Raises ConfigError for steps or shift out of range."""

    def __init__(self, config: HeunConfig) -> None:
        config.check()
        self.steps = config.steps
        self.shift = config.shift

    def evaluations(self) -> Sequence[int]:
        """Return 2 for each step, but 1 for the last: that one is an Euler step, since it ends without noise."""
        return (*[2] * (self.steps - 1), 1)

    def schedule(self) -> ExtendedSchedule:
        """Return a fresh schedule over Euler's grid: linspace(1000, 1, steps), shifted."""
        return _HeunSchedule(self.steps, self.shift)


class _HeunSchedule:
    def __init__(self, steps: int, shift: float) -> None:
        levels = (1 - 0.999 * index / max(1, steps - 1) for index in range(steps))
        self.timesteps: Sequence[float] = (*(1000 * shift * level / (1 + (shift - 1) * level) for level in levels), 0.0)

    def step_with(self, velocity: Tensor, index: int, latents: Tensor, tools: StepTools) -> Tensor:
        """Make one step, along the mean of the velocities at both of its ends."""
        end = self.timesteps[index + 1]
        length = (end - self.timesteps[index]) / 1000
        guess = latents + length * velocity
        if index == len(self.timesteps) - 2:
            return guess
        return latents + length * 0.5 * (velocity + tools.evaluate(guess, end))


@hookimpl
def register_samplers(register: Register[CountedSampler]) -> None:
    register(Heun, HeunConfig)
