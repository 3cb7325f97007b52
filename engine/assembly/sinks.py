"""The sink for a request's video, the delivery, and a kept video of an earlier attempt."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from engine.components import BoundSink, CancelToken, JobSink, KeepingSink, PatientSink, Sink
from engine.data import Access, Artifact, Delivery, Inputs, Kept, Plan, Report, Request, Resumed
from engine.errors import RequestError, UnknownComponent
from engine.plugin.manager import Registry
from engine.runtime.progress import Meter


def sink_for_request(
    sink: Sink,
    request: Request,
    registry: Registry,
    access: Access,
    *,
    own: str,
    cancel: CancelToken | None = None,
) -> Sink:
    """Return the sink for `request`: the engine's `sink`, or the one it names, bound to its job and its bucket.

    `own` is the name of `sink`. A bucket that the job brings must be at an allowed address; the sink's `check` tests
    that. A sink that may take long checks `cancel`. Raises RequestError.
    """
    if request.sink not in (None, own):
        sink = _named(str(request.sink), registry)
    sink = _bound(sink, request, access)
    return sink.until(cancel) if cancel is not None and isinstance(sink, PatientSink) else sink


def _bound(sink: Sink, request: Request, access: Access) -> Sink:
    if isinstance(sink, JobSink):
        return sink.for_job(request.job, request.store, access.private_hosts)
    if isinstance(sink, BoundSink) and request.answer_bytes is not None:
        sink = sink.within(request.answer_bytes)
    if request.store is not None and request.sink is None:
        raise RequestError(
            "the sink does not accept a job's own bucket",
            field="request.store",
            hint="remove it, or start with sink=s3",
        )
    return sink


@dataclass(frozen=True)
class Making:
    """How a video was made, for its answer."""

    #: The memory profile.
    memory: str
    #: Forwards that were computed; None: not counted.
    forwards: int | None
    #: Whether the features of the prompts were known already.
    prompts_reused: bool
    #: Seconds of writing beside other stages.
    overlapped: float
    #: The judgement of its windows, if they were judged.
    report: Report | None = None
    #: Path or URL of the playlist that was published meanwhile, and what went wrong with it.
    live: str | None = None
    live_warnings: tuple[str, ...] = ()
    #: Windows of an earlier attempt.
    windows_taken_over: int = 0
    #: What could not be kept for another attempt, or not be used of an earlier one.
    warnings: Sequence[str] = ()


def make_delivery(
    kept: Kept,
    artifact: Artifact,
    plan: Plan,
    inputs: Inputs,
    meter: Meter,
    making: Making,
) -> Delivery:
    """Return the delivery of a video that a sink keeps, with the warnings of plan, inputs and sink.

    `meter` measured the stages.
    """
    return Delivery(
        address=kept.address,
        content=kept.content,
        sha256=kept.sha256,
        bytes=kept.bytes,
        media_type=artifact.media_type,
        seconds=artifact.seconds,
        frames=artifact.frames,
        fps=plan.fps,
        seed=plan.seed,
        timings={stage: round(seconds, 6) for stage, seconds in meter.timings.items()},
        overlapped={"write": making.overlapped} if making.overlapped else {},
        plan=plan,
        memory=making.memory,
        forwards=making.forwards,
        prompts_reused=making.prompts_reused,
        windows_taken_over=making.windows_taken_over,
        live=making.live,
        peaks=meter.peaks.found,
        report=making.report,
        warnings=(*plan.warnings, *inputs.warnings, *making.warnings, *making.live_warnings, *kept.warnings),
    )


def resume(sink: Sink, request: Request) -> Resumed | None:
    """Deliver the video that `sink` kept from an earlier attempt of the request's job, if any. Raises SinkError."""
    if request.job is None or not isinstance(sink, KeepingSink):
        return None
    waiting = sink.waiting(request.job)
    if waiting is None:
        return None
    began = time.monotonic()
    kept = sink.resume(request.job)
    return Resumed(
        address=kept.address,
        content=kept.content,
        sha256=kept.sha256,
        bytes=kept.bytes,
        media_type=waiting.media_type,
        seconds=waiting.seconds,
        frames=waiting.frames,
        fps=round(waiting.frames / waiting.seconds, 3) if waiting.seconds else 0.0,
        seed=request.seed,
        timings={"keep": round(time.monotonic() - began, 6)},
        warnings=(
            "an earlier attempt of this job generated the video and could not deliver it; it was not generated again",
            *kept.warnings,
        ),
    )


def _named(name: str, registry: Registry) -> Sink:
    try:
        return registry.sinks.build_default(name)
    except UnknownComponent as error:
        raise RequestError(error.what, field="request.sink", hint=error.hint, code=error.code) from None
