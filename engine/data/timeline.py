"""What changes in the course of a video: prompts and reference pictures by time, and where its windows are cut."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@dataclass(frozen=True)
class Cue:
    """A prompt, or a reference picture, that holds from a time of the finished video until the next one."""

    #: The prompt's text, or the picture's address.
    value: str
    #: Its begin, as exactly one of the two: in seconds, or as a frame of the finished video, from 0.
    seconds: float | None = None
    frame: int | None = None


@dataclass(frozen=True)
class PlannedCue:
    """The window with which a cue begins: a window has one prompt and one picture."""

    #: Its begin as requested, in seconds of the finished video.
    requested: float
    #: Index of its first window, and the begin of that window's new frames in seconds.
    window: int
    begins: float


@dataclass(frozen=True)
class Seam:
    """The place between two windows, chosen for its quiet."""

    #: Index of the window that begins there, and the begin of its new frames in seconds.
    window: int
    seconds: float
    #: The loudest voice there in dB relative to that voice's own level while it speaks; at least -60.
    level: float
    #: Whether nobody speaks there.
    pause: bool


@dataclass(frozen=True)
class Seams:
    """The result of windows=pauses."""

    seams: tuple[Seam, ...]
    #: Number of windows and of frames computed in them, and the same for windows=fixed.
    windows: int
    computed: int
    fixed_windows: int
    fixed_computed: int
    #: Number of cuts of windows=fixed that would be in pauses.
    fixed_pauses: int


@dataclass(frozen=True)
class Loudness:
    """How loud the voices are in the course of a video, for windows=pauses."""

    #: Values per second.
    rate: float
    #: float32: the loudest voice in dB relative to that voice's own level while it speaks, -60 or more.
    levels: npt.NDArray[np.float32] = field(compare=False)
