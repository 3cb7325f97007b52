"""What a caller asks for, and the files that it comes to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from engine.data.access import Credentials
from engine.data.budget import Budget
from engine.data.voices import Cut, Speaker

AudioType = Literal["para", "add"]
Timing = Literal["direct", "native"]
Fit = Literal["crop", "pad"]


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
    #: 0 .. 2**63 - 1; -1 draws a random one, which the delivery and the provenance report.
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
