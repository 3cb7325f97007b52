"""The data of a generation, from the decoded inputs to the delivery, and its progress updates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.data.dub import Held
from engine.data.live import Live, Preview
from engine.data.plan import Plan
from engine.data.report import Report

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor


@dataclass(frozen=True)
class Inputs:
    """The request's media, decoded and cut to size."""

    #: uint8 RGB (height, width, 3) at target size.
    image: npt.NDArray[np.uint8]
    #: float32 mono 16 kHz, one per speaker, all of equal length on the request's time axis; zeros for a silent speaker.
    voices: tuple[npt.NDArray[np.float32], ...]
    #: float32 0/1 (speakers + 1, height / 8, width / 8), the last row is the background.
    masks: npt.NDArray[np.float32]
    #: float32 stereo 48 kHz (samples, 2): the mix of the original voices.
    sound: npt.NDArray[np.float32]
    #: Facts found while decoding that change the result, one sentence each.
    warnings: tuple[str, ...] = ()
    #: The reference pictures after the first, as `image`.
    images: tuple[npt.NDArray[np.uint8], ...] = ()


@dataclass(frozen=True)
class Motion:
    """The leading latent frames of a window, which come from the previous window or the picture."""

    #: float32 (16, t, h, w).
    latents: Tensor
    #: True: they replace the latents without noise before every forward and after every step (InfiniteTalk). False:
    #: they are mixed with new noise of the current level before the first and after every step (MultiTalk).
    clean: bool


@dataclass(frozen=True)
class Conditions:
    """All conditions of the denoiser for one window, embedded once."""

    #: float32 (20, T, h, w): 4 mask channels, 16 channels of the encoded conditioning frames.
    latents: Tensor
    #: The network's inputs for each guidance branch ("cond", "drop_text", "drop_audio", "uncond").
    branches: Mapping[str, Any]
    motion: Motion | None
    #: The source frames around and under the people, with dub.mode=keep.
    held: Held | None = None


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
    """A sink's answer: where the video is, or the video itself, with its size and SHA-256."""

    #: A path or URL; None if the answer contains the content. No repr shows it: a presigned URL is a secret.
    address: str | None = field(repr=False)
    #: The content as base64 text, from sinks that return it.
    content: str | None = field(repr=False)
    #: SHA-256 in hexadecimal digits, and the number, of the bytes that the caller gets.
    sha256: str
    bytes: int
    #: Unexpected actions of the sink, one sentence each.
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Peak:
    """The peak memory of a generation, in bytes.

    On the host it is the resident memory of the process, on a CUDA device the memory that torch has allocated.
    """

    #: At the beginning: libraries, and weights that were already loaded.
    start: int
    peak: int
    #: By how much each stage raised the peak so far; the sum is `peak` minus `start`.
    raised: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Delivered(Kept):
    """Where the caller finds a video, and how long each stage took this time."""

    media_type: str
    seconds: float
    frames: int
    fps: float
    seed: int
    #: Seconds by stage.
    timings: Mapping[str, float]


@dataclass(frozen=True, kw_only=True, repr=False)
class Delivery(Delivered):
    """A video that was made and delivered."""

    plan: Plan
    #: Seconds of work beside other stages, by stage: in addition to `timings`, whose sum is the time that passed.
    overlapped: Mapping[str, float] = field(default_factory=dict)
    #: The memory profile with which it was made.
    memory: str = "none"
    #: Forwards whose blocks were computed; the plan's number includes those that a step cache skipped. None: not known.
    forwards: int | None = None
    #: Whether the features of its prompts were known from an earlier generation, so that the text encoder did not run.
    prompts_reused: bool = False
    #: Windows that an earlier, interrupted attempt had finished, so that they were not made again.
    windows_taken_over: int = 0
    #: Path or URL of the HLS playlist that was published while the video was made; None: it was not published.
    live: str | None = field(default=None, repr=False)
    #: Peak memory of "host" and "device", if known.
    peaks: Mapping[str, Peak] = field(default_factory=dict)
    #: The judgement of its windows; None: the config asked for none.
    report: Report | None = None

    def __repr__(self) -> str:
        """Return the video's path, length and seed; not its URL, which may be a secret."""
        place = "in the answer" if self.address is None else self.address
        place = "at a URL" if "://" in place else place
        return (
            f"<Delivery {place}: {self.frames} frames at {self.fps:g}, {self.seconds:.2f} s, seed {self.seed}, "
            f"{len(self.warnings)} warnings>"
        )


@dataclass(frozen=True)
class Resumed(Delivered):
    """A video that an earlier attempt of the same job made but could not deliver, delivered now."""


@dataclass(frozen=True)
class Progress:
    """A progress update."""

    stage: str
    #: Counted from 1; 0 if windows or steps do not apply.
    window: int = 0
    windows: int = 0
    step: int = 0
    steps: int = 0
    #: Completed share of the whole generation, 0 .. 1.
    fraction: float = 0.0
    #: Estimated seconds left; None: not known yet.
    remaining: float | None = None
    #: The plan's warnings, after planning: known limits of the result.
    warnings: tuple[str, ...] = ()
    #: What is published of the video so far; None: nothing yet, or it is not published.
    live: Live | None = None
    #: The newest preview, of this or an earlier update; None: none yet, or not asked for.
    preview: Preview | None = None
