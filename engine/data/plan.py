"""What is decided before anything is loaded: sizes, places, windows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from engine.data.adapters import LoraUse
from engine.data.estimates import Estimates
from engine.data.request import AudioType, Fit, Timing


@dataclass(frozen=True)
class PlanInputs:
    """What the planner takes from a config: the model's facts and the choices that count windows and forwards."""

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
