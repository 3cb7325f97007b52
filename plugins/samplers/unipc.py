"""UniPC along the flow-matching schedule: a second-order multistep solver for fewer steps (arXiv 2302.04867)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from engine import hookimpl
from engine.components import Sampler, Schedule
from engine.config import SamplerConfig
from engine.register import Register

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class UnipcConfig(SamplerConfig):
    """UniPC: one forward a step, second order. Not the solver of the public implementation."""

    name: str = "unipc"


class Unipc:
    """Sampler over diffusers' UniPCMultistepScheduler. Raises ConfigError for steps or shift out of range."""

    def __init__(self, config: UnipcConfig) -> None:
        config.check()
        self.steps = config.steps
        self.shift = config.shift

    def schedule(self) -> Schedule:
        """Return a fresh schedule over linspace(1000, 1, steps + 1) without its last entry, shifted."""
        return _UnipcSchedule(self.steps, self.shift)


class _UnipcSchedule:
    def __init__(self, steps: int, shift: float) -> None:
        from diffusers import UniPCMultistepScheduler

        kind = cast("Any", UniPCMultistepScheduler)
        self._scheduler = kind(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)
        # Not Euler's grid: its last time but one is 1, a leap in log-SNR over which a second-order step overshoots
        # (measured: twice Euler's error instead of a third).
        self._scheduler.set_timesteps(steps)
        self._scheduler.set_begin_index(0)
        # diffusers' own timesteps are cut to integers, which is another time for the network.
        self.timesteps: Sequence[float] = tuple((self._scheduler.sigmas * 1000).tolist())

    def step(self, velocity: Tensor, index: int, latents: Tensor) -> Tensor:
        """Go one step on. Steps are taken in order, from index 0: the solver looks back."""
        time = self._scheduler.timesteps[index]
        return cast("Tensor", self._scheduler.step(velocity, time, latents, return_dict=False)[0])


@hookimpl
def register_samplers(register: Register[Sampler]) -> None:
    register(Unipc, UnipcConfig)
