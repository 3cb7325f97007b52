"""The self-test of a worker: a short video by the packaged tiny model, which needs no other weights."""

from __future__ import annotations

import base64
import hashlib
import time
from importlib.resources import files
from typing import Any

from engine.components import CancelToken, ProgressCallback, Service
from engine.data import Request, Speaker
from engine.errors import EngineError

FRAMES = 9
#: Sets everything that a worker's own overrides could change.
_OVERRIDES = (
    *("model=tiny", "source=packaged", "sampler=turbo", "sink=base64"),
    "access.schemes=[data]",
)


def selftest(
    service: Service, *, device: str, progress: ProgressCallback | None, cancel: CancelToken
) -> dict[str, Any]:
    """Make the video with a second, tiny service on `device` and return the measurements. Raises EngineError."""
    began = time.monotonic()
    examples = files("engine") / "examples"
    request = Request(
        prompt="a person talks",
        image=inline(examples.joinpath("one.png").read_bytes()),
        speakers=(Speaker(inline(examples.joinpath("one.flac").read_bytes())),),
        frames=FRAMES,
    )
    tiny = service.open([*_OVERRIDES, f"device={device}"], alone=True)
    try:
        delivery = tiny.generate(request, progress=progress, cancel=cancel)
    finally:
        tiny.close()
    video = base64.b64decode(delivery.content or "")
    if delivery.frames != FRAMES or video[4:8] != b"ftyp":
        raise EngineError(
            f"the self-test made {delivery.frames} frames and {len(video)} bytes, not a video of {FRAMES} frames",
            hint="the installation of this worker is broken",
            code="selftest_failed",
        )
    return {
        "ok": True,
        "seconds": round(time.monotonic() - began, 3),
        "frames": delivery.frames,
        "sha256": hashlib.sha256(video).hexdigest(),
        "timings": {stage: round(seconds, 3) for stage, seconds in delivery.timings.items()},
    }


def inline(content: bytes) -> str:
    """Return a data URL of a file's content."""
    return "data:application/octet-stream;base64," + base64.b64encode(content).decode("ascii")
