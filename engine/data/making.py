"""Settings of a request for making its windows, and the forwards that they took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class EncodeOptions:
    """Settings of a request for encoding its windows."""

    #: The guidance branches to embed conditions for.
    branches: Sequence[str]
    #: "multitalk" conditions on the history and uses its latents as motion. "infinitetalk" conditions every window on
    #: the picture and encodes the history separately as motion; the first window's motion is the picture.
    style: str
    #: Frames per second of the windows' time axis, and of the time axis on which voices are encoded.
    fps: float
    native_fps: float


@dataclass(frozen=True)
class DecodeOptions:
    """Settings of a request for decoding its windows."""

    #: Number of frames from which the next window continues: 4n + 1.
    motion_frames: int
    #: How far colours are corrected towards the picture's, 0 .. 1.
    color_strength: float
    #: Frames per second of the windows' time axis.
    fps: float
    #: Number of frames over which a window is blended with the end of the one before.
    blend: int = 0


@dataclass
class Tally:
    """The forwards of a request."""

    #: Forwards that were asked for, and those of them that a step cache skipped.
    asked: int = 0
    skipped: int = 0
    #: Whether `skipped` is complete: a step cache of a plugin may not count.
    counted: bool = True

    @property
    def made(self) -> int | None:
        """The number of forwards whose blocks were computed; None: not known."""
        return self.asked - self.skipped if self.counted else None
