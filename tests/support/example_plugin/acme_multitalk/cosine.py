"""Euler's method on a cosine grid: short steps at both ends, long ones in the middle."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from engine import hookimpl
from engine.config import SamplerConfig


@dataclass
class CosineConfig(SamplerConfig):
    """Euler on a cosine grid."""

    name: str = "cosine"


class Cosine:
    def __init__(self, config: CosineConfig) -> None:
        self.timesteps = [500 + 500 * math.cos(math.pi * i / config.steps) for i in range(config.steps + 1)]

    def schedule(self) -> Cosine:
        return self  # a solver that remembers earlier steps returns a new object here

    def step(self, velocity: Any, index: int, latents: Any) -> Any:
        return latents + (self.timesteps[index + 1] - self.timesteps[index]) / 1000 * velocity


@hookimpl
def register_samplers(register: Any) -> None:
    register(Cosine, CosineConfig)
