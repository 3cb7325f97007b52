"""The schema of `live`: a video that is published while it is made."""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.config.ranges import one_of, within


@dataclass
class LiveConfig:
    """Publishing a video while it is made: see docs/live.md."""

    #: Publish each window as soon as it is encoded, as HLS; a job sets it for itself with its field `live`.
    enabled: bool = False
    #: Folder of published videos, with a sub-folder for each job, for a web server; null: the sink's own place.
    folder: str | None = "${oc.env:MULTITALK_LIVE_FOLDER,null}"
    #: Address under which that web server offers `folder`; null: the path is reported.
    url: str | None = "${oc.env:MULTITALK_LIVE_URL,null}"
    #: What happens to a published video if the job fails or is cancelled: "end" closes its playlist after the last
    #: part, "remove" removes it.
    on_failure: str = field(default="end", metadata=one_of("end", "remove"))
    #: Small pictures in progress updates: "none", "window" (of each finished window) or "step" (of each step, too).
    preview: str = field(default="none", metadata=one_of("none", "window", "step"))
    #: Width of each frame in a preview, in pixels.
    preview_width: int = field(default=160, metadata=within(32, 640))
    #: Number of frames in a preview, side by side.
    preview_frames: int = field(default=4, metadata=within(1, 16))
