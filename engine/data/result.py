"""What a generation makes, from the decoded inputs to the delivery, and its reports of progress."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.data.plan import Plan

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor


@dataclass(frozen=True)
class Inputs:
    """The request's media, decoded and cut to size."""

    #: uint8 RGB (height, width, 3) at target size.
    image: npt.NDArray[np.uint8]
    #: float32 mono 16 kHz, one a speaker, all of one length on the request's time axis; zeros for a silent speaker.
    voices: tuple[npt.NDArray[np.float32], ...]
    #: float32 0/1 (speakers + 1, height / 8, width / 8), the last row is the background.
    masks: npt.NDArray[np.float32]
    #: float32 stereo 48 kHz (samples, 2): the mix of the original voices.
    sound: npt.NDArray[np.float32]
    #: What was found while decoding and changes the result, a sentence each.
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Motion:
    """The leading latent frames of a window that are given, not made."""

    #: float32 (16, t, h, w).
    latents: Tensor
    #: True: overwritten clean before every forward and after every step (InfiniteTalk); False: mixed with fresh noise
    #: of the current level before the first and after every step (MultiTalk).
    clean: bool


@dataclass(frozen=True)
class Conditions:
    """All that steers the denoiser for one window, embedded once."""

    #: float32 (20, T, h, w): 4 mask channels, 16 channels of the encoded conditioning frames.
    latents: Tensor
    #: What the network needs for each guidance branch ("cond", "drop_text", "drop_audio", "uncond").
    branches: Mapping[str, Any]
    motion: Motion | None


@dataclass(frozen=True)
class Frames:
    """Finished pictures: uint8 RGB (time, height, width, 3)."""

    pictures: npt.NDArray[np.uint8]
    fps: float


@dataclass(frozen=True)
class Artifact:
    """A finished file on the local disk."""

    path: Path
    media_type: str
    seconds: float
    frames: int
    filename: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Kept:
    """What a sink answers: where the video is, or the video itself, and how to tell that it is whole."""

    #: A path or URL; None where the content itself is the answer. No repr shows it: a presigned URL is a key.
    address: str | None = field(repr=False)
    #: The content as base64 text, for sinks that hand it over.
    content: str | None = field(repr=False)
    #: SHA-256 of the bytes that the caller gets, in hexadecimal digits, and their number.
    sha256: str
    bytes: int
    #: What was done otherwise than one might expect, a sentence each.
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Peak:
    """The most memory, in bytes, that a generation found taken at a time.

    On the host that is all of the process' resident memory, on a CUDA device what torch has allocated there.
    """

    #: When it began: libraries, and weights that were loaded before.
    start: int
    peak: int
    #: By how much each stage raised the peak above what was reached before it; together `peak` less `start`.
    raised: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Delivered(Kept):
    """Where the caller finds a video, and what it took this time."""

    media_type: str
    seconds: float
    frames: int
    fps: float
    seed: int
    #: Seconds by stage.
    timings: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Delivery(Delivered):
    """A video that was made and is where it should be."""

    plan: Plan
    #: The memory profile it was made with.
    memory: str = "none"
    #: What was taken of the memory of "host" and "device", where that is known.
    peaks: Mapping[str, Peak] = field(default_factory=dict)


@dataclass(frozen=True)
class Resumed(Delivered):
    """A video that an earlier try of the same job made and could not deliver, delivered now."""


@dataclass(frozen=True)
class Progress:
    """A progress update."""

    stage: str
    #: Counted from 1; 0 where windows or steps do not apply.
    window: int = 0
    windows: int = 0
    step: int = 0
    steps: int = 0
    #: Share of the whole generation that is done, 0 .. 1.
    fraction: float = 0.0
    #: Seconds left; None while nothing is known.
    remaining: float | None = None
    #: The plan's warnings, once it is made: what is known of the result before the work.
    warnings: tuple[str, ...] = ()
