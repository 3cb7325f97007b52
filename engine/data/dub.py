"""A source video in place of the picture: what is known of it, and what the plan does with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engine.data.voices import Cut

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class SourceVideo:
    """A source video as a local file, with the values of its packets."""

    path: Path
    #: (width, height) of the upright frames, in square pixels.
    size: tuple[int, int]
    #: Frames per second, on average.
    fps: float
    #: Seconds from its first frame to the end of its last one.
    seconds: float
    #: Time of its first frame by the clock of its file, in seconds.
    begins: float = 0.0
    #: Most pixels of a frame that is decoded.
    max_pixels: int = 2**26
    #: Begins of its scenes after the first, in seconds, as far as the video needs them.
    cuts: tuple[float, ...] = ()
    #: Its sound if that is mixed under the voices, and the second of the video at which the sound's file begins.
    sound: Cut | None = None
    sound_begins: float = 0.0


@dataclass(frozen=True)
class DubPlan:
    """What a generation does with its source video."""

    #: "sparse" or "keep", and how cuts are treated: "find" or "none".
    mode: str
    cuts: str
    #: (width, height), frames per second and seconds of the source.
    size: tuple[int, int]
    fps: float
    seconds: float
    #: Index of each window that begins a scene, and its begin in seconds; the first window is not listed.
    scenes: tuple[tuple[int, float], ...] = ()
    #: Second from which the source's last frame stays, because the video is longer; None: it is not.
    still_from: float | None = None
    #: Level in dB of the source's sound under the voices; None: it is not heard.
    sound_level: float | None = None


def scene_of(plan: DubPlan, window: int) -> int:
    """Return the number of the scene to which the window of that index belongs, from 0."""
    return sum(begin <= window for begin, _ in plan.scenes)


@dataclass(frozen=True)
class Held:
    """A window's source frames, which replace the latents outside the people's regions while they are denoised."""

    #: float32 (16, T, h, w): the encoded source frames.
    latents: Tensor
    #: float32 (h, w): 1 where people speak, 0 where the source is.
    inside: Tensor
    #: Noise level, 0 .. 1, above which the source also replaces the latents inside.
    until: float
