"""A caller's request, and its addresses as local files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from engine.data.access import Credentials
from engine.data.budget import Budget
from engine.data.dialogue import Made
from engine.data.dub import SourceVideo
from engine.data.timeline import Cue, Loudness
from engine.data.voices import Cut, Found, Speaker, address_of

AudioType = Literal["para", "add"]
Timing = Literal["direct", "native"]
Fit = Literal["crop", "pad"]


@dataclass(frozen=True)
class Store:
    """A job's own bucket, such as RunPod's s3Config."""

    bucket: str
    credentials: Credentials


@dataclass(frozen=True)
class Request:
    """What the caller asks for: addresses and settings; nothing is loaded."""

    #: "" with `prompts`, and `image` "" with `images` or `video`.
    prompt: str
    image: str
    #: The first speaker is the leftmost person if regions are automatic.
    speakers: tuple[Speaker, ...]
    #: None: the model's own.
    negative_prompt: str | None = None
    #: 0 .. 2**63 - 1; -1: a random one, which the delivery and the video's provenance report.
    seed: int = 42
    #: Frames of the finished video; "auto" or None: as long as the voices.
    frames: int | Literal["auto"] | None = None
    #: Frames per second of the finished video; None: the model's native rate.
    fps: float | None = None
    #: "para": all voices start at once; "add": one after the other, in order.
    audio_type: AudioType = "para"
    timing: Timing = "direct"
    fit: Fit = "crop"
    #: File name for the sink, without a folder; None: the sink's choice.
    filename: str | None = None
    #: Name under which a sink stores the video and finds it again; None: the sink's choice.
    job: str | None = None
    #: The job's own bucket; None: the bucket of the sink's config. Its keys are also used for s3:// addresses.
    store: Store | None = None
    #: Name of a sink to use instead of the engine's, with its own defaults; None: the engine's.
    sink: str | None = None
    #: Maximum bytes of the video as text in the answer; None: no limit.
    answer_bytes: int | None = None
    #: Publish the video while it is made; None: as the config's `live.enabled`.
    live: bool | None = None
    #: Small pictures in progress updates: "none", "window" or "step"; None: as the config's `live.preview`.
    preview: str | None = None
    #: Config overrides of this request only, e.g. "sampler=turbo", "guidance.text_scale=3".
    overrides: tuple[str, ...] = ()
    budget: Budget = Budget()
    #: Prompts by time, sorted, the first at 0; instead of `prompt`. See docs/timeline.md.
    prompts: tuple[Cue, ...] = ()
    #: Reference pictures by time, sorted, the first at 0; instead of `image`, only for continuation.style=infinitetalk.
    images: tuple[Cue, ...] = ()
    #: A source video in place of the picture, only for continuation.style=infinitetalk; "": none. See docs/dubbing.md.
    video: str = ""
    #: A script instead of `speakers`: who says what, as text. See docs/dialogue.md.
    script: str = ""
    #: One recording of several people instead of `speakers`, as an address; "": none. See docs/voices.md.
    voices: str = ""
    #: Number of people in the recording.
    people: int = 2
    #: Where the people of the recording are, as `Region.box`, in the order in which they first speak or of the
    #: channels; (): automatic, from left to right.
    boxes: tuple[tuple[float, float, float, float], ...] = ()
    #: Folder that gets the voices that were made of the script or the recording; "": none. Never from a job.
    keep_voices: str = ""
    #: Address of the sound that is heard instead of the voices, which the network hears; "": none. See docs/voices.md.
    soundtrack: str = ""
    #: What the engine made of the script or the recording, besides `speakers`.
    made: Made | None = None

    def __post_init__(self) -> None:
        """Take a `Path` as its text. Raises TypeError for what is no address."""
        for name in ("image", "video", "voices", "soundtrack"):
            object.__setattr__(self, name, address_of(name, getattr(self, name)))


@dataclass(frozen=True)
class Media:
    """The request's addresses as local files, with the values from their headers."""

    #: With a source video: its first frame.
    image: Path
    #: (width, height) in pixels after the EXIF orientation is applied.
    image_size: tuple[int, int]
    #: One entry per speaker; None: silent.
    voices: tuple[Path | None, ...]
    #: Seconds of each voice, after its part of the file is selected; 0.0 for a silent speaker.
    seconds: tuple[float, ...]
    #: One entry per speaker: the mask picture, if the region is a mask.
    masks: tuple[Path | None, ...]
    #: One entry per speaker: the selected part of the file; None: silent.
    cuts: tuple[Cut | None, ...] = ()
    #: Seconds of silence before each voice.
    delays: tuple[float, ...] = ()
    #: Unexpected interpretations of the files, one sentence each.
    warnings: tuple[str, ...] = ()
    #: One entry per reference picture after the first, which is `image`; and their (width, height) in pixels.
    images: tuple[Path, ...] = ()
    image_sizes: tuple[tuple[int, int], ...] = ()
    #: How loud the voices are, decoded only for windows=pauses.
    loudness: Loudness | None = None
    #: The source video, if there is one.
    source: SourceVideo | None = None
    #: The file that is heard instead of the voices, and its used part.
    soundtrack: tuple[Path, Cut] | None = None
    #: People whom the finder saw and who got no voice.
    silent_people: tuple[Found, ...] = ()
