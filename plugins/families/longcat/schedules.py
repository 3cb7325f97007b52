"""Noise levels of the steps: guided, distilled, and the uniform tail of 1.0's continuations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from engine.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

#: Steps of the distilled model 1.5: its LoRA was trained for these and no others.
DISTILLED_STEPS = 8
#: Times of the tail, 500 to 50, which replace all lower ones.
_TAIL = tuple(range(500, 0, -50))
#: Noise levels of LongCat-Video's distillation, of which every n-th is used.
_FINE = tuple(level / 1000 for level in range(1000, 0, -20))


class Levels:
    """Euler's method along noise levels, 1 .. 0: see `engine.components.Schedule`."""

    def __init__(self, sigmas: Sequence[float]) -> None:
        self.sigmas = tuple(sigmas)
        self.timesteps: Sequence[float] = tuple(1000 * sigma for sigma in sigmas)

    def step(self, velocity: Tensor, index: int, latents: Tensor) -> Tensor:
        """Make one step."""
        return latents - (self.sigmas[index] - self.sigmas[index + 1]) * velocity


def shifted(levels: Sequence[float], shift: float) -> tuple[float, ...]:
    """Return noise levels, 0 .. 1, moved towards 1: s * x / (1 + (s - 1) * x)."""
    return tuple(shift * level / (1 + (shift - 1) * level) for level in levels)


def guided_levels(steps: int) -> tuple[float, ...]:
    """Return the noise levels of `steps` steps before the shift: evenly from 1 to 0.001. Raises ConfigError."""
    _check_steps(steps, 1, 1000)
    if steps == 1:
        return (1.0,)
    return tuple(1 + index * (0.001 - 1) / (steps - 1) for index in range(steps))


def distilled_levels(version: str, steps: int) -> tuple[float, ...]:
    """Return the noise levels of a distilled model before the shift. Raises ConfigError.

    "1.5": its 8 levels, 125 of 999 apart. "1.0": `steps` of the 50 levels 1, 0.98, ..., 0.02; no distilled weights of
    1.0 are published, and LongCat-Video's use 16 of them.
    """
    if version == "1.5":
        if steps != DISTILLED_STEPS:
            raise ConfigError(
                f"the distilled model has {DISTILLED_STEPS} steps, not {steps}",
                field="sampler.steps",
                hint=f"use {DISTILLED_STEPS}, or leave out the distillation",
            )
        return tuple(1 - 125 * index / 999 for index in range(DISTILLED_STEPS))
    _check_steps(steps, 1, len(_FINE))
    # In this order, as numpy.linspace multiplies.
    return tuple(_FINE[int(index * (len(_FINE) / steps))] for index in range(steps))


def with_tail(sigmas: Sequence[float]) -> tuple[float, ...]:
    """Return the levels above 0.5 and then 0.5, 0.45, ..., 0.05, for windows of 1.0 that continue others.

    The shift leaves few steps for low noise; the tail adds detail that a continuation would lose.
    """
    return (*(sigma for sigma in sigmas if sigma * 1000 > _TAIL[0]), *(time / 1000 for time in _TAIL))


def sigmas(version: str, steps: int, shift: float, *, distilled: bool, continuation: bool) -> tuple[float, ...]:
    """Return the noise levels of a window's steps, 1 .. 0; each step goes from one to the next. Raises ConfigError.

    `continuation`: the window continues another one; version "1.0" without distillation then has its tail.
    """
    levels = distilled_levels(version, steps) if distilled else guided_levels(steps)
    found = shifted(levels, shift)
    if continuation and version == "1.0" and not distilled:
        found = with_tail(found)
    return (*found, 0.0)


def _check_steps(steps: int, least: int, most: int) -> None:
    if not least <= steps <= most:
        raise ConfigError(f"{steps} steps", field="sampler.steps", hint=f"must be {least} to {most}")
