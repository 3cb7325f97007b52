"""Turns a delivery or an exception into the JSON that the caller of a job gets."""

from __future__ import annotations

import errno
import json
import logging
import os
import secrets
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from engine.data import Delivery, Resumed
from engine.errors import EngineError, SinkError
from engine.redaction import scrub
from engine.serving.jobs.job import FIELDS, ParsedJob, caller_field

_LOG = logging.getLogger(__name__)
#: Errors of a disk that is full or read-only, wherever they are raised.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def answer(job: ParsedJob, delivery: Delivery | Resumed, *, local_caller: bool = False) -> dict[str, Any]:
    """Return the answer of a finished job: the video or its address, and how it was made.

    It has one of `video_url`, `video_base64` and `video_path`. Only a caller on this machine (`local_caller`) gets
    paths in warnings. Raises SinkError for a delivery without a video.
    """
    return {
        **_video(delivery),
        **_live(delivery),
        "sha256": delivery.sha256,
        "bytes": delivery.bytes,
        "seed": delivery.seed,
        "frames": delivery.frames,
        "fps": delivery.fps,
        "seconds": round(delivery.seconds, 3),
        "timings": {stage: round(seconds, 3) for stage, seconds in delivery.timings.items()},
        **_overlapped(delivery),
        **_forwards(delivery),
        **_memory(delivery),
        **_loras(delivery),
        **_attention(delivery),
        **_report(delivery),
        "engine_version": engine_version(),
        "warnings": [scrub(warning, _secrets(job), local_caller=local_caller) for warning in delivery.warnings],
    }


def _overlapped(delivery: Delivery | Resumed) -> dict[str, Any]:
    if isinstance(delivery, Resumed) or not delivery.overlapped:
        return {}
    return {"overlapped": {stage: round(seconds, 3) for stage, seconds in delivery.overlapped.items()}}


def error_answer(error: BaseException, job: ParsedJob | None = None, *, local_caller: bool = False) -> dict[str, str]:
    """Return the answer of a failed job: one line, a code, the field and a hint.

    Any error that is not an EngineError is a bug: the caller gets only a reference, which the log has beside the
    traceback. The text of such an error is never sent.
    """
    if isinstance(error, OSError) and error.errno in _FULL:
        _LOG.error("the disk cannot be written", exc_info=error)
        error = EngineError(
            f"a file cannot be written: {os.strerror(error.errno or 0)}",
            hint="free space on the machine's disk, or send the job to another worker",
            code="disk_unwritable",
        )
    if not isinstance(error, EngineError):
        return _internal(error)
    hidden = _secrets(job)
    field = scrub(caller_field(error.field, job.fields if job else FIELDS), hidden)
    what, hint = (
        scrub(error.what, hidden, local_caller=local_caller),
        scrub(error.hint, hidden, local_caller=local_caller),
    )
    line = f"{field}: {what}" if field else what
    return {
        "error": f"{line}; {hint}" if hint else line,
        "error_code": error.code,
        "field": field,
        "hint": hint,
    }


def engine_version() -> str:
    """Return the installed version of the engine, or "unknown"."""
    try:
        return version("multitalk-engine")
    except PackageNotFoundError:
        return "unknown"


def _video(delivery: Delivery | Resumed) -> dict[str, str]:
    if delivery.content is not None:
        return {"video_base64": delivery.content}
    if delivery.address is None:
        raise SinkError("the sink returned no video", field="output.sink", hint="choose another sink")
    return {"video_url" if "://" in delivery.address else "video_path": delivery.address}


def _live(delivery: Delivery | Resumed) -> dict[str, Any]:
    if isinstance(delivery, Resumed) or delivery.live is None:
        return {}
    return {"live": {"playlist": delivery.live}}


def _forwards(delivery: Delivery | Resumed) -> dict[str, Any]:
    if isinstance(delivery, Resumed):
        return {}
    forwards = {} if delivery.forwards is None else {"forwards": delivery.forwards}
    return forwards | {
        "prompts_reused": delivery.prompts_reused,
        "windows_taken_over": delivery.windows_taken_over,
    }


def _memory(delivery: Delivery | Resumed) -> dict[str, Any]:
    # A resumed video was not made again, so nothing was measured.
    if isinstance(delivery, Resumed) or not delivery.peaks:
        return {}
    return {"memory": {where: asdict(peak) for where, peak in delivery.peaks.items()}}


def _loras(delivery: Delivery | Resumed) -> dict[str, Any]:
    if isinstance(delivery, Resumed) or not delivery.plan.loras:
        return {}
    return {"loras": [asdict(lora) for lora in delivery.plan.loras]}


def _attention(delivery: Delivery | Resumed) -> dict[str, Any]:
    if isinstance(delivery, Resumed) or not delivery.plan.attention:
        return {}
    return {"attention": delivery.plan.attention}


def _report(delivery: Delivery | Resumed) -> dict[str, Any]:
    if isinstance(delivery, Resumed) or delivery.report is None:
        return {}
    # Through JSON, so that tuples are lists.
    return {"report": json.loads(json.dumps(asdict(delivery.report), allow_nan=False))}


def _internal(error: BaseException) -> dict[str, str]:
    reference = secrets.token_hex(4)
    _LOG.error("internal error, reference %s", reference, exc_info=error)
    hint = f"send the job again; if it fails again, look for {reference} in the worker's log"
    what = f"internal error (reference {reference})"
    return {"error": f"{what}; {hint}", "error_code": "internal_error", "field": "", "hint": hint}


def _secrets(job: ParsedJob | None) -> tuple[str, ...]:
    return job.credentials.secrets() if job is not None and job.credentials is not None else ()
