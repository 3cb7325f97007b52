"""The sink for a request's video, the delivery, and a kept video of an earlier attempt."""

from __future__ import annotations

import time

from engine.components import BoundSink, CancelToken, JobSink, KeepingSink, PatientSink, Sink
from engine.data import Access, Artifact, Delivery, Inputs, Kept, Plan, Request, Resumed
from engine.errors import RequestError, UnknownComponent
from engine.plugin.manager import Registry
from engine.runtime.progress import Meter
from engine.stages.passes import Tally


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


def make_delivery(
    kept: Kept,
    artifact: Artifact,
    plan: Plan,
    inputs: Inputs,
    memory: str,
    meter: Meter,
    tally: Tally,
    *,
    prompts_reused: bool,
    overlapped: float,
) -> Delivery:
    """Return the delivery of a video that a sink keeps, with the warnings of plan, inputs and sink.

    `memory` is the memory profile; `meter` measured the stages, `tally` counted the forwards, and `overlapped` are the
    seconds of writing beside other stages.
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
        timings=meter.timings,
        overlapped={"write": overlapped} if overlapped else {},
        plan=plan,
        memory=memory,
        forwards=tally.made,
        prompts_reused=prompts_reused,
        peaks=meter.peaks.found,
        warnings=(*plan.warnings, *inputs.warnings, *kept.warnings),
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
        timings={"keep": time.monotonic() - began},
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
