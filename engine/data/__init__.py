"""What flows through the engine, in the order in which it comes to be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from engine.data.access import Access as Access  # parts of this module's face
from engine.data.access import Credentials as Credentials
from engine.data.adapters import LoraUse
from engine.data.budget import Budget
from engine.data.estimates import Estimates
from engine.data.voices import Cut as Cut
from engine.data.voices import Link as Link
from engine.data.voices import Region as Region
from engine.data.voices import Speaker as Speaker

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

AudioType = Literal["para", "add"]
Timing = Literal["direct", "native"]
Fit = Literal["crop", "pad"]


# --- asked ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Store:
    """A bucket that a job brings along, such as RunPod's s3Config."""

    bucket: str
    credentials: Credentials


@dataclass(frozen=True)
class Request:
    """What the caller asks for: addresses and wishes, nothing loaded."""

    prompt: str
    image: str
    #: The first speaker is the leftmost person where regions are automatic.
    speakers: tuple[Speaker, ...]
    #: None: the model's own.
    negative_prompt: str | None = None
    #: 0 .. 2**63 - 1; -1: one that is drawn, which the delivery and the recipe tell.
    seed: int = 42
    #: Frames of the finished video; "auto" or None: as many as the voices last.
    frames: int | Literal["auto"] | None = None
    #: Frames a second of the finished video; None: the model's native rate.
    fps: float | None = None
    #: "para": all voices start at once; "add": one after the other, in order.
    audio_type: AudioType = "para"
    timing: Timing = "direct"
    fit: Fit = "crop"
    #: File name for the sink, without a folder; None: the sink's choice.
    filename: str | None = None
    #: Name under which a sink keeps the video and finds it again; None: the sink's choice.
    job: str | None = None
    #: The job's own bucket; None: the one that the sink was configured with. Its keys open s3:// addresses as well.
    store: Store | None = None
    #: Name of another sink than the engine's, with its own defaults; None: the engine's.
    sink: str | None = None
    #: Most bytes of text that the answer may carry of the video itself; None: any number.
    answer_bytes: int | None = None
    #: Config overrides of this request alone, e.g. "sampler=turbo", "guidance.text_scale=3".
    overrides: tuple[str, ...] = ()
    budget: Budget = Budget()


# --- found ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Media:
    """The request's addresses as local files, with what their headers say."""

    image: Path
    #: (width, height) in pixels after the EXIF orientation is applied.
    image_size: tuple[int, int]
    #: One entry a speaker; None: silent.
    voices: tuple[Path | None, ...]
    #: Seconds of each voice, of what is taken of its file; 0.0 for a silent speaker.
    seconds: tuple[float, ...]
    #: One entry a speaker: the mask picture, if the region is a mask.
    masks: tuple[Path | None, ...]
    #: One entry a speaker: what is taken of the file; None: silent.
    cuts: tuple[Cut | None, ...] = ()
    #: Seconds of silence before each voice.
    delays: tuple[float, ...] = ()
    #: What was understood otherwise than one might expect, a sentence each.
    warnings: tuple[str, ...] = ()


# --- planned ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    """What a config says to the planner: the model's facts and the choices that count windows and forwards."""

    model: str
    resolution: str
    #: Nominal height / width -> (height, width).
    buckets: Mapping[str, tuple[int, int]]
    native_fps: float
    #: Most frames of a window, and frames given from the window before: 4n + 1 each.
    window: int
    motion: int
    sampler: str
    steps: int
    guidance: str
    passes: int
    untrained: bool
    #: Folder of the weights; None: not found, `absent` says why.
    weights: Path | None
    absent: str = ""
    #: Evaluations of the network in each window; None: one a step.
    evaluations: int | None = None
    #: Side of the VAE's tiles in pixels; 0: none.
    tile: int = 0
    #: Seconds for which the style of continuation holds a face, who says so, what is advised beyond; None: no limit.
    holds: tuple[float, str, str] | None = None


@dataclass(frozen=True)
class Canvas:
    """How the source picture comes to the model's size. All sizes are (width, height) in pixels."""

    source: tuple[int, int]
    scaled: tuple[int, int]
    target: tuple[int, int]
    #: (x, y) of the target's corner in the scaled picture (crop), negative where the picture is padded (pad).
    offset: tuple[int, int]
    fit: Fit


@dataclass(frozen=True)
class Seat:
    """Who sits where."""

    speaker: int
    #: [x0, y0, x1, y1] in target pixels: the part of the region that the target shows.
    box: tuple[int, int, int, int]
    #: "auto", "box" or "mask".
    kind: str
    silent: bool
    #: Seconds of voice, and the second at which it begins.
    seconds: float
    begins: float


@dataclass(frozen=True)
class Window:
    """One stretch of frames that the network makes in one go."""

    index: int
    #: First frame, on the axis of generated frames; the motion frames count from here.
    start: int
    #: Frames computed: 4n + 1.
    frames: int
    #: Leading frames that repeat the end of the window before; 0 in the first.
    motion: int
    #: New frames used of this window: frames[motion : motion + keep].
    keep: int


@dataclass(frozen=True)
class Plan:
    """The whole walk, decided before anything is loaded."""

    model: str
    resolution: str
    #: The weights say of themselves that nobody has trained them.
    untrained: bool
    canvas: Canvas
    seats: tuple[Seat, ...]
    #: Frames and rate of the finished video.
    frames: int
    fps: float
    seconds: float
    timing: Timing
    audio_type: AudioType
    #: Frames that the network makes on its own axis, and that axis' rate.
    generated_frames: int
    generated_fps: float
    windows: tuple[Window, ...]
    sampler: str
    steps: int
    guidance: str
    #: Forwards of the network in each evaluation of it (guidance passes; most samplers make one evaluation a step), and
    #: in all (before any step cache).
    passes: int
    forwards: int
    seed: int
    #: Folder of the weights; None: not found (the warnings say where was looked).
    weights: Path | None
    warnings: tuple[str, ...] = ()
    loras: tuple[LoraUse, ...] = ()
    #: Of `plan` alone: no part of what is decided. None where the model's sizes are not known.
    estimates: Estimates | None = field(default=None, compare=False)


# --- made -------------------------------------------------------------------------------------------------------------


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
    """One sign of life."""

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


# --- weights ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Weights:
    """Which weights a model needs: a folder in the layout of diffusers, a sub-folder for each component."""

    model: str
    #: Name of the folder, e.g. below the volume.
    folder: str
    components: tuple[str, ...]
    #: The model's weights ship inside the package.
    packaged: bool = False
    #: A command that gets them.
    command: str = ""
    #: That one and others, each with what it brings: its size, and what to add to the config.
    commands: tuple[tuple[str, str], ...] = ()
    #: The file of audio weights that belongs to the model, or the end of its path; "": any.
    adapter: str = ""
    #: How the transformer is kept: decides which of its files is read.
    quant: str = "none"
    #: The quantised file, below the folder, where there are several.
    file: str | None = None
