"""Euler's method along the flow-matching schedule: the solver of the public implementation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from engine import hookimpl
from engine.components import Sampler, Schedule
from engine.config import SamplerConfig, one_of
from engine.plugin.register import Register

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class EulerConfig(SamplerConfig):
    """Euler: one evaluation per step, first order, float32."""

    name: str = "euler"
    #: Noise levels before the shift: "linspace": from 1 to 0.001, as in the public code; "trailing": from 1 in steps of
    #: 1 / steps (arXiv 2305.08891, table 2), as distilled models are trained.
    spacing: str = field(default="linspace", metadata=one_of("linspace", "trailing"))


class Euler:
    """Sampler over diffusers' FlowMatchEulerDiscreteScheduler. Raises ConfigError for steps or shift out of range."""

    def __init__(self, config: EulerConfig) -> None:
        config.check()
        self.steps = config.steps
        self.shift = config.shift
        self.last = 1.0 if config.spacing == "linspace" else 1000.0 / config.steps

    def schedule(self) -> Schedule:
        """Return a fresh schedule over linspace(1000, last, steps), shifted."""
        return _EulerSchedule(self.steps, self.shift, self.last)


class _EulerSchedule:
    def __init__(self, steps: int, shift: float, last: float) -> None:
        import numpy as np
        from diffusers import FlowMatchEulerDiscreteScheduler

        kind = cast("Any", FlowMatchEulerDiscreteScheduler)
        self._scheduler = kind(shift=shift)
        # Without explicit sigmas diffusers would start from an already shifted smallest sigma and shift it again.
        self._scheduler.set_timesteps(sigmas=np.linspace(1000, last, steps, dtype=np.float32) / 1000)
        self._scheduler.set_begin_index(0)
        self.timesteps: Sequence[float] = (*self._scheduler.timesteps.tolist(), 0.0)

    def step(self, velocity: Tensor, index: int, latents: Tensor) -> Tensor:
        """Make one step. Steps must be made in order, from index 0."""
        time = self._scheduler.timesteps[index]
        return cast("Tensor", self._scheduler.step(velocity, time, latents, return_dict=False)[0])


@hookimpl
def register_samplers(register: Register[Sampler]) -> None:
    register(Euler, EulerConfig)
