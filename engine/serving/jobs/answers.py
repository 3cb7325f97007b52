"""Delivery or exception -> the JSON that the caller of a job gets."""

from __future__ import annotations

import errno
import logging
import os
import secrets
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from engine.data import Delivery, Resumed
from engine.errors import EngineError, SinkError
from engine.redaction import scrub
from engine.serving.jobs.job import FIELDS, Job, spell

_LOG = logging.getLogger(__name__)
#: Errors of a disk that takes no more, wherever they come from.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def answer(job: Job, delivery: Delivery | Resumed, *, own: bool = False) -> dict[str, Any]:
    """Return what a finished job answers: where the video is, or the video itself, and how it was made.

    One of `video_url`, `video_base64` and `video_path` is in it. Warnings have paths for a caller whose `own` machine
    it is. Raises SinkError for a delivery that holds no video.
    """
    return {
        **_video(delivery),
        "sha256": delivery.sha256,
        "bytes": delivery.bytes,
        "seed": delivery.seed,
        "frames": delivery.frames,
        "fps": delivery.fps,
        "seconds": round(delivery.seconds, 3),
        "timings": {stage: round(seconds, 3) for stage, seconds in delivery.timings.items()},
        **_memory(delivery),
        **_loras(delivery),
        "engine_version": engine_version(),
        "warnings": [scrub(warning, _secrets(job), own=own) for warning in delivery.warnings],
    }


def error_answer(error: BaseException, job: Job | None = None, *, own: bool = False) -> dict[str, str]:
    """Return what a failed job answers: one line, a code, the job's field and what would work.

    An error that the engine did not raise on purpose is a bug: the caller reads a reference, and the log has it beside
    the traceback. Nothing of the text of such an error is answered.
    """
    if isinstance(error, OSError) and error.errno in _FULL:
        _LOG.error("the disk takes no more", exc_info=error)
        error = EngineError(
            f"a file cannot be written: {os.strerror(error.errno or 0)}",
            hint="free the machine's disk, or send the job to another worker",
            code="disk_unwritable",
        )
    if not isinstance(error, EngineError):
        return _internal(error)
    hidden = _secrets(job)
    field = scrub(spell(error.field, job.fields if job else FIELDS), hidden)
    what, hint = scrub(error.what, hidden, own=own), scrub(error.hint, hidden, own=own)
    line = f"{field}: {what}" if field else what
    return {
        "error": f"{line}; {hint}" if hint else line,
        "error_code": error.code,
        "field": field,
        "hint": hint,
    }


def engine_version() -> str:
    """Return the version of the engine that is installed."""
    try:
        return version("multitalk-engine")
    except PackageNotFoundError:
        return "unknown"


def _video(delivery: Delivery | Resumed) -> dict[str, str]:
    if delivery.content is not None:
        return {"video_base64": delivery.content}
    if delivery.address is None:
        raise SinkError("the sink kept no video", field="output.sink", hint="choose another sink")
    return {"video_url" if "://" in delivery.address else "video_path": delivery.address}


def _memory(delivery: Delivery | Resumed) -> dict[str, Any]:
    # Nothing was made anew of a video that is resumed.
    if isinstance(delivery, Resumed) or not delivery.peaks:
        return {}
    return {"memory": {where: asdict(peak) for where, peak in delivery.peaks.items()}}


def _loras(delivery: Delivery | Resumed) -> dict[str, Any]:
    if isinstance(delivery, Resumed) or not delivery.plan.loras:
        return {}
    return {"loras": [asdict(lora) for lora in delivery.plan.loras]}


def _internal(error: BaseException) -> dict[str, str]:
    reference = secrets.token_hex(4)
    _LOG.error("internal error, reference %s", reference, exc_info=error)
    hint = f"send the job again; if it fails again, look for {reference} in the worker's log"
    what = f"internal error (reference {reference})"
    return {"error": f"{what}; {hint}", "error_code": "internal_error", "field": "", "hint": hint}


def _secrets(job: Job | None) -> tuple[str, ...]:
    return job.credentials.secrets() if job is not None and job.credentials is not None else ()
