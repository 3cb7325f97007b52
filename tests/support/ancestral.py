"""An ancestral sampler as somebody else would write one: each step predicts the data and adds fresh noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.components import ExtendedSchedule, StepTools
from engine.config import SamplerConfig

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class AncestralConfig(SamplerConfig):
    """Euler ancestral along the flow-matching schedule."""

    name: str = "test-ancestral"


class Ancestral:
    def __init__(self, config: AncestralConfig) -> None:
        self.steps = config.steps

    def schedule(self) -> ExtendedSchedule:
        return _Schedule(self.steps)


class _Schedule:
    def __init__(self, steps: int) -> None:
        self.timesteps: Sequence[float] = [1000 * (1 - index / steps) for index in range(steps + 1)]

    def step_with(self, velocity: Tensor, index: int, latents: Tensor, tools: StepTools) -> Tensor:
        start, end = (time / 1000 for time in self.timesteps[index : index + 2])
        data = latents - start * velocity
        return (1 - end) * data + end * tools.noise()
