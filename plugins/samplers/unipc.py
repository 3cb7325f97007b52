"""UniPC along the flow-matching schedule: a second-order multistep solver for fewer steps (arXiv 2302.04867)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from engine import hookimpl
from engine.components import Sampler, Schedule
from engine.config import SamplerConfig
from engine.plugin.register import Register

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class UnipcConfig(SamplerConfig):
    """UniPC: one evaluation per step, second order. Not the solver of the public implementation."""

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
    """The steps of diffusers' scheduler: order 2, predicting data, B(h) = exp(h) - 1, order 1 at both ends.

    Coefficients are 0-dimensional CPU tensors, bit for bit those of diffusers on a CPU. On a GPU, diffusers' own steps
    copy each noise level to the device, and wait for it in the corrector's solver.
    """

    def __init__(self, steps: int, shift: float) -> None:
        from diffusers import UniPCMultistepScheduler

        kind = cast("Any", UniPCMultistepScheduler)
        scheduler = kind(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)
        # Not Euler's grid: its second last time is 1. From there the log-SNR jumps so far that a second-order step
        # overshoots (measured: twice Euler's error instead of a third).
        scheduler.set_timesteps(steps)
        self._sigmas: Tensor = scheduler.sigmas
        # Not diffusers' own timesteps: it truncates them to integers, which changes the network's input.
        self.timesteps: Sequence[float] = tuple((self._sigmas * 1000).tolist())
        #: The last two predictions of the data, and the latents at the start of the last step.
        self._data: list[Tensor] = []
        self._last: Tensor | None = None
        self._order = 0

    def step(self, velocity: Tensor, index: int, latents: Tensor) -> Tensor:
        """Make one step. Steps must be made in order, from index 0: the solver uses earlier ones."""
        steps = len(self._sigmas) - 1
        data = latents - self._sigmas[index] * velocity
        if self._last is not None:
            latents = self._correct(index, self._last, data)
        self._data = [*self._data[-1:], data]
        self._order = min(2, steps - index, index + 1)
        self._last = latents
        return self._predict(index, latents)

    def _predict(self, index: int, latents: Tensor) -> Tensor:
        """Go from the time of `index` to the next (UniP)."""
        jump = _Jump(self._sigmas, index, index + 1, index - 1)
        on = jump.first(latents, self._data[-1])
        if self._order == 1:
            return on
        change = (self._data[-2] - self._data[-1]) / jump.ratio()
        return on - jump.alpha * jump.growth * (change * 0.5)

    def _correct(self, index: int, last: Tensor, data: Tensor) -> Tensor:
        """Repeat the step from `last` to `index`, now that the data is predicted there as well (UniC)."""
        jump = _Jump(self._sigmas, index - 1, index, index - 2)
        on = jump.first(last, self._data[-1])
        change = data - self._data[-1]
        if self._order == 1:
            return on - jump.alpha * jump.growth * (change * 0.5)
        before, here = jump.weights()
        earlier = (self._data[-2] - self._data[-1]) / jump.ratio()
        return on - jump.alpha * jump.growth * (earlier * before + here * change)


class _Jump:
    """The coefficients of one step from noise level `start` to `end`; the step before began at `before`."""

    def __init__(self, sigmas: Tensor, start: int, end: int, before: int) -> None:
        import torch

        self._before = sigmas[before]
        self._start, self._end = sigmas[start], sigmas[end]
        self.alpha = 1 - self._end
        self._height = _log_snr(self._end) - _log_snr(self._start)
        self.growth = torch.expm1(-self._height)

    def first(self, latents: Tensor, data: Tensor) -> Tensor:
        """Return the result of a first-order step."""
        return self._end / self._start * latents - self.alpha * self.growth * data

    def ratio(self) -> Tensor:
        """Return where the step before began, relative to this step's length in log-SNR; below 0."""
        return (_log_snr(self._before) - _log_snr(self._start)) / self._height

    def weights(self) -> tuple[Tensor, Tensor]:
        """Return the corrector's weights for the previous change and for the change over this step."""
        import torch

        back = -self._height
        ratios = torch.stack([self.ratio(), torch.ones(())])
        rest = self.growth / back - 1
        second = rest / back - 1 / 2
        target = torch.stack([rest * 1 / self.growth, second * 2 / self.growth])
        solution = torch.linalg.solve(torch.stack([ratios.pow(0), ratios.pow(1)]), target)
        return solution[0], solution[1]


def _log_snr(sigma: Tensor) -> Tensor:
    return (1 - sigma).log() - sigma.log()


@hookimpl
def register_samplers(register: Register[Sampler]) -> None:
    register(Unipc, UnipcConfig)
