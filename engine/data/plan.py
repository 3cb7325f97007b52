"""The decisions before any weights are loaded: sizes, places, windows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from engine.data.adapters import LoraUse
from engine.data.dialogue import Dialogue
from engine.data.dub import DubPlan
from engine.data.estimates import Estimates
from engine.data.request import AudioType, Fit, Timing
from engine.data.timeline import PlannedCue, Seams


@dataclass(frozen=True)
class PlanInputs:
    """The values of a config that the planner needs: those of the model, and those that decide windows and forwards."""

    model: str
    resolution: str
    #: Nominal height / width -> (height, width).
    buckets: Mapping[str, tuple[int, int]]
    native_fps: float
    #: Maximum frames of a window, and frames that it gets from the previous window: 4n + 1 each.
    window: int
    motion: int
    sampler: str
    steps: int
    guidance: str
    passes: int
    untrained: bool
    #: Folder of the weights; None: not found, for the reason in `absent`.
    weights: Path | None
    absent: str = ""
    #: Evaluations of the network in each window; None: one per step.
    evaluations: int | None = None
    #: Forwards in each window; None: `passes` in each evaluation.
    forwards: int | None = None
    #: Forwards in each window that continues another one; None: as in the first.
    others: int | None = None
    #: Side of the VAE's tiles in pixels; 0: no tiles.
    tile: int = 0
    #: Whether a forward of an evaluation sees the negative prompt.
    negative: bool = True
    #: How often a window may be made again.
    retakes: int = 0
    #: Whether every window has the maximum number of frames.
    whole_windows: bool = False
    #: Largest number of speakers that the model was made for; 0: any.
    speakers: int = 0
    #: Seconds for which the style of continuation keeps a face, their source, and the alternative for longer videos;
    #: None: no limit.
    holds: tuple[float, str, str] | None = None
    #: "multitalk" or "infinitetalk": whether a window sees the history or the reference picture.
    style: str = ""
    #: Whether the model takes a source video in place of the picture.
    dubs: bool = True
    #: "fixed": windows as long as possible; "pauses": windows meet in pauses of speech.
    windows: str = "fixed"
    #: How a source video is used, its cuts, and the level of its sound in dB; None: it is not heard.
    dub: str = "sparse"
    dub_cuts: str = "find"
    dub_level: float | None = None


@dataclass(frozen=True)
class Canvas:
    """How the source picture is scaled and cut to the model's size. All sizes are (width, height) in pixels."""

    source: tuple[int, int]
    scaled: tuple[int, int]
    target: tuple[int, int]
    #: (x, y) of the target's corner in the scaled picture (crop), negative if the picture is padded (pad).
    offset: tuple[int, int]
    fit: Fit


@dataclass(frozen=True)
class Seat:
    """The place of one speaker in the picture."""

    speaker: int
    #: [x0, y0, x1, y1] in target pixels: the part of the region that the target shows.
    box: tuple[int, int, int, int]
    #: "auto", "found" (a finder decided), "box" or "mask".
    kind: str
    silent: bool
    #: Seconds of the voice, and its begin in seconds.
    seconds: float
    begins: float


@dataclass(frozen=True)
class Window:
    """A section of frames that the network generates together."""

    index: int
    #: Index of its first frame among the generated frames, motion frames included.
    start: int
    #: Number of computed frames: 4n + 1.
    frames: int
    #: Leading frames that repeat the end of the previous window; 0 in the first window.
    motion: int
    #: New frames used of this window: frames[motion : motion + keep].
    keep: int


def cue_of(planned: Sequence[PlannedCue], window: int) -> int:
    """Return the index of the entry that holds in the window of that index; 0 without a timeline."""
    return max(0, sum(cue.window <= window for cue in planned) - 1)


@dataclass(frozen=True)
class Plan:
    """The whole generation, decided before any weights are loaded."""

    model: str
    resolution: str
    #: Whether the weights state that they are untrained.
    untrained: bool
    canvas: Canvas
    seats: tuple[Seat, ...]
    #: Frames and rate of the finished video.
    frames: int
    fps: float
    seconds: float
    timing: Timing
    audio_type: AudioType
    #: Number of generated frames before resampling, and their frames per second.
    generated_frames: int
    generated_fps: float
    windows: tuple[Window, ...]
    sampler: str
    steps: int
    guidance: str
    #: Maximum forwards of the network in each evaluation (guidance passes; most samplers make one evaluation per step),
    #: and forwards in total (with a guidance interval, without a step cache).
    passes: int
    forwards: int
    seed: int
    #: Folder of the weights; None: not found (the warnings list the searched places).
    weights: Path | None
    warnings: tuple[str, ...] = ()
    loras: tuple[LoraUse, ...] = ()
    #: The kernel of self-attention, and why it was chosen; "": not decided yet.
    attention: str = ""
    #: Evaluations of the network in each window; None: one per step.
    evaluations: int | None = None
    #: The first window of each of the request's prompts and pictures by time; empty for a request with only one.
    prompts: tuple[PlannedCue, ...] = ()
    images: tuple[PlannedCue, ...] = ()
    #: The canvas of each picture after the first, all with the same target.
    canvases: tuple[Canvas, ...] = ()
    #: Where windows meet with windows=pauses, and why.
    seams: Seams | None = None
    #: How often a window may be made again if it is outside the report's limits (retake.max), and forwards in total if
    #: every window is, each time; None: none is.
    retakes: int = 0
    most_forwards: int | None = None
    #: What is done with the source video; None: there is none.
    dub: DubPlan | None = None
    #: The turns of a script, or those found in a recording of several people.
    dialogue: Dialogue | None = None
    #: Only `plan` calculates them; they are not a decision. None if the model's sizes are not known.
    estimates: Estimates | None = field(default=None, compare=False)
