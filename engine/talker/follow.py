"""Follows a generation through the engine's hooks: its frames and its sound before they are encoded, and its steps."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from engine.data import Frames, Inputs, Plan, Request, Window
from engine.plugin.manager import installed
from engine.plugin.spec import hookimpl
from engine.stages.windows import resample
from engine.talker.video import SOUND_RATE

if TYPE_CHECKING:
    from torch import Tensor

#: Called with a step's number, from 1, and its `time`, 0 .. 1000, latents and predicted latents.
OnStep = Callable[[int, float, "Tensor", "Tensor"], None]
#: Called with a window's frames and sound: pictures, samples, the window, and the second at which it begins.
OnWindow = Callable[[npt.NDArray[np.uint8], npt.NDArray[np.float32], Window, Plan, float], None]


class Follower:
    """What one generation shows of itself."""

    def __init__(self, request: Request, on_window: OnWindow, on_step: OnStep | None) -> None:
        self.request, self._on_window, self.on_step = request, on_window, on_step
        self.sound = np.zeros((0, 2), np.float32)
        self._plan: Plan | None = None
        self._frames = 0

    def __enter__(self) -> Follower:
        """Follow the generation of the request inside a `with`."""
        followers()[str(self.request.filename)] = self
        return self

    def __exit__(self, *_: object) -> None:
        """Stop following."""
        followers().pop(str(self.request.filename), None)

    def start(self, plan: Plan, inputs: Inputs) -> None:
        """Keep the plan, and the sound at the length of the video."""
        self._plan = plan
        length = round(plan.seconds * SOUND_RATE)
        self.sound = np.zeros((length, 2), np.float32)
        heard = inputs.sound[:length]
        self.sound[: len(heard)] = heard

    def add(self, frames: Frames, window: Window) -> None:
        """Hand on the part of the video that a window makes."""
        assert self._plan is not None
        part = resample(frames, window, self._plan)
        begin = self._frames / part.fps
        self._frames += len(part.pictures)
        first, last = round(begin * SOUND_RATE), round(self._frames / part.fps * SOUND_RATE)
        self._on_window(part.pictures, self.sound[first:last], window, self._plan, begin)


class _Hooks:
    """The plugin; requests that nobody follows are left alone."""

    def __init__(self, following: dict[str, Follower]) -> None:
        self._following = following

    @hookimpl
    def generation_started(self, request: Request, plan: Plan, inputs: Inputs) -> None:
        if (follower := self._following.get(str(request.filename))) is not None:
            follower.start(plan, inputs)

    # After the plugins that change the frames.
    @hookimpl(trylast=True)
    def window_finished(self, request: Request, window: Window, frames: Frames) -> None:
        if (follower := self._following.get(str(request.filename))) is not None:
            follower.add(frames, window)


class _StepHooks:
    """Another plugin, because the engine computes more while somebody follows its steps."""

    def __init__(self, following: dict[str, Follower]) -> None:
        self._following = following

    @hookimpl
    def step_predicted(self, request: Request, step: int, latents: Tensor, predicted: Tensor, time: float) -> None:
        follower = self._following.get(str(request.filename))
        if follower is not None and follower.on_step is not None:
            follower.on_step(step, time, latents, predicted)


@functools.cache
def followers() -> dict[str, Follower]:
    """Return who follows which request, by the name of its file; the first call registers the plugin."""
    following: dict[str, Follower] = {}
    installed().plugins.register(_Hooks(following), name="talker")
    return following


@functools.cache
def follow_steps() -> Any:
    """Register the plugin for steps, once."""
    return installed().plugins.register(_StepHooks(followers()), name="talker-steps")
