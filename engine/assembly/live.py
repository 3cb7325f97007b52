"""Config and sink -> where a request's video is published while it is made, and its previews."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.components import LiveSink, Sink
from engine.config import Config
from engine.data import Plan, Request, Window
from engine.data.live import LiveFolder
from engine.errors import RequestError
from engine.files.live import DiskLiveFolder
from engine.files.undelivered import JOB
from engine.runtime.progress import Meter
from engine.stages.previews import Previews
from engine.stages.publish import Publisher, longest_part
from engine.stages.write import Writer

if TYPE_CHECKING:
    from torch import Tensor


def live_folder(sink: Sink, request: Request, config: Config) -> LiveFolder | None:
    """Return where `request`'s video is published; None if it is not. Nothing is written yet.

    `sink` is the request's sink. Raises RequestError if the video cannot be published there.
    """
    live = config.live
    if not (live.enabled if request.live is None else request.live):
        return None
    if live.folder is not None:
        job, attempt = request.job or "talk", secrets.token_urlsafe(12)
        if not JOB.fullmatch(job):
            hint = "use letters, digits, '.', '_' and '-', a letter or digit first, at most 128 characters"
            raise RequestError("the job's name cannot be the name of a folder", field="request.job", hint=hint)
        url = None if live.url is None else f"{live.url.rstrip('/')}/{job}/{attempt}"
        return DiskLiveFolder([Path(live.folder).absolute() / job / attempt], url=url)
    if not isinstance(sink, LiveSink):
        name = request.sink or config.sink.name
        raise RequestError(
            f"sink={name} cannot publish a video while it is made",
            field="request.live",
            hint="choose sink=s3 or sink=disk, set live.folder, or leave out live",
            code="live_unsupported",
        )
    return sink.live(request.filename)


def make_previews(request: Request, config: Config, meter: Meter, hooks: Any) -> Previews | None:
    """Return what follows the steps of a request's windows, for its progress updates and for plugins; None: nobody.

    `hooks` are the plugins' (`step_predicted`).
    """
    live, kind = config.live, request.preview or config.live.preview
    followed = bool(hooks.step_predicted.get_hookimpls())
    if kind == "none" and not followed:
        return None

    def tell(window: Window, number: int, latents: Tensor, predicted: Tensor, time: float) -> None:
        hooks.step_predicted(
            request=request, window=window, step=number, latents=latents, predicted=predicted, time=time
        )

    report, follow = None if kind == "none" else meter.show, tell if followed else None
    return Previews(report, steps=kind == "step", width=live.preview_width, frames=live.preview_frames, follow=follow)


def make_publisher(folder: LiveFolder | None, writer: Writer, plan: Plan, config: Config, meter: Meter) -> Publisher:
    """Return the publisher of a request, which reports each part through `meter`."""
    remove = config.live.on_failure == "remove"
    return Publisher(folder, writer, longest_part(plan), remove=remove, report=meter.publish, cancel=meter)
