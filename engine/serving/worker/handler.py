"""Turns a job into its answer; the SDK calls the handler for one job at a time."""

from __future__ import annotations

import dataclasses
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from engine.components import CancelToken, ProgressCallback
from engine.data import Delivery, Plan, Progress, Request
from engine.errors import Cancelled, EngineError, ProcessLost, RequestError, SinkError
from engine.redaction import scrub
from engine.serving.jobs.answers import answer, engine_version, error_answer
from engine.serving.jobs.defaults import JOB_DEFAULTS, JobDefaults, input_defaults
from engine.serving.jobs.job import ParsedJob, parse_job
from engine.serving.jobs.schema import DEFAULT_LIMITS, SECRET, JobLimits
from engine.serving.worker.cancellable import in_thread
from engine.serving.worker.cuda_errors import device_state, is_device_lost, is_out_of_memory
from engine.serving.worker.logs import LogContext
from engine.serving.worker.progress_sender import Post, ProgressSender
from engine.serving.worker.selftest import selftest
from engine.serving.worker.warm_engine import WarmEngine

_LOG = logging.getLogger(__name__)

#: Bytes that the platform adds around what a handler returns.
ENVELOPE = 1024
#: Characters of a job's id that are logged, texts of a job's `s3Config` that are hidden, and characters of each.
_NAME, _KEYS, _KEY = 128, 16, 8192
#: Bytes that an answer needs beside the video.
_FIELDS = 8192


@dataclass(frozen=True)
class Terms:
    """The terms of a worker: the limits of jobs and answers, and the defaults of jobs."""

    limits: JobLimits = DEFAULT_LIMITS
    #: Defaults for fields that a job leaves out.
    job_defaults: JobDefaults = JOB_DEFAULTS
    #: Largest size of an answer in bytes, as the platform counts them.
    answer_bytes: int = 10_000_000
    #: Sinks that a job may choose, besides the worker's own.
    sinks: tuple[str, ...] = ("s3", "base64")
    #: The reader of the answers works on this machine and may see its paths.
    local_caller: bool = False
    #: Folder of a job's relative paths; None: the working directory.
    folder: Path | None = None


class Handler:
    """Answers jobs. Errors are part of the answer; only a cancellation is raised, as the SDK requires."""

    def __init__(
        self,
        warm_engine: WarmEngine,
        terms: Terms,
        *,
        poster: Callable[[Mapping[str, Any]], Post | None] | None = None,
        streamer: Callable[[Mapping[str, Any]], Post | None] | None = None,
        context: LogContext | None = None,
    ) -> None:
        """`poster` returns the function that sends a job's progress updates, or None if there is no receiver.

        `streamer` returns the one that sends pieces of its stream.
        """
        self.warm_engine = warm_engine
        self.terms = terms
        #: Once set, the running job ends at its next check, and no further job begins.
        self.stopped = threading.Event()
        self._poster = poster
        self._streamer = streamer
        self._context = context or LogContext()
        self._started = time.monotonic()
        self._done = self._failed = 0
        self._start_reported = False
        #: Seconds that the current job waited for imports and weights.
        self._waited = 0.0

    async def handle(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        """Return the job's answer. Raises CancelledError, but only when the device is free again."""
        name = payload.get("id")
        self._context.begin(name[:_NAME] if isinstance(name, str) else "", _possible_secrets(payload.get(SECRET)))
        try:
            return await in_thread(lambda cancel: self._answer(payload, cancel), self.stopped)
        finally:
            self._context.end()

    def _answer(self, payload: Mapping[str, Any], cancel: CancelToken) -> dict[str, Any]:
        began = time.monotonic()
        self._waited = 0.0
        job: ParsedJob | None = None
        try:
            if self.stopped.is_set():
                raise Cancelled
            terms = self.terms
            job = parse_job(payload, limits=terms.limits, job_defaults=terms.job_defaults, folder=terms.folder)
            _LOG.info("job begins: %s", job.action)
            result = self._act(job, payload, cancel)
            self._check_size(result)
        except BaseException as error:  # noqa: BLE001 - all are answered; the SDK would send a traceback to the caller
            self._failed += 1
            return self._error_answer(error, job)
        if "timings" in result:
            result["overhead"] = round(
                max(0.0, time.monotonic() - began - sum(result["timings"].values()) - self._waited), 3
            )
        self._done += 1
        _LOG.info("job is done in %.1f s", time.monotonic() - began)
        return result

    def _act(self, job: ParsedJob, payload: Mapping[str, Any], cancel: CancelToken) -> dict[str, Any]:
        match job.action:
            case "health":
                return self.health()
            case "capabilities":
                return self.capabilities()
            case "plan":
                return _plan(self.warm_engine.service.plan(self._request(job), cancel=cancel), job)
            case "selftest":
                with self._progress(payload, job) as on_progress:
                    # Two models must not be loaded at once, and this wait can be cancelled.
                    self.warm_engine.wait_until_ready(cancel)
                    device = str(self.warm_engine.capabilities.get("device", "auto"))
                    result = selftest(self.warm_engine.service, device=device, progress=on_progress, cancel=cancel)
                return result | {"engine_version": engine_version(), "warnings": []}
            case "generate":
                return self._generate(job, payload, cancel)

    # --- the actions of a job -----------------------------------------------------------------------------------------

    def health(self) -> dict[str, Any]:
        """Return the state of the worker; needs no weights and no device."""
        warm_engine = self.warm_engine
        report = {
            "status": warm_engine.state,
            "loaded": warm_engine.state == "ready",
            "model": warm_engine.capabilities.get("model"),
            "memory": warm_engine.memory,
            **device_state(str(warm_engine.capabilities.get("device", "auto")), loaded=warm_engine.state == "ready"),
            "versions": warm_engine.capabilities.get("versions", {}),
            "engine_version": engine_version(),
            "uptime": round(time.monotonic() - self._started, 3),
            "jobs_done": self._done,
            "jobs_failed": self._failed,
            "warnings": [],
        }
        if warm_engine.error is not None:
            # Not under `error`, which would fail this job.
            known = isinstance(warm_engine.error, EngineError)
            report["problem"] = scrub(str(warm_engine.error)) if known else "internal error; see the worker's log"
        return report

    def capabilities(self) -> dict[str, Any]:
        """Return what the worker was started with and what a job may choose."""
        report = dict(self.warm_engine.capabilities)
        return report | {
            "sinks": sorted({*self.terms.sinks, str(report.get("sink", ""))} - {""}),
            "limits": dataclasses.asdict(self.terms.limits) | {"answer_bytes": self.terms.answer_bytes},
            "defaults": _defaults(self.terms),
            "actions": ["generate", "plan", "health", "capabilities", "selftest"],
            "engine_version": engine_version(),
            "warnings": [],
        }

    def _generate(self, job: ParsedJob, payload: Mapping[str, Any], cancel: CancelToken) -> dict[str, Any]:
        request = self._request(job)
        resumed = self.warm_engine.service.resume(request, cancel=cancel)
        if resumed is not None:
            return answer(job, resumed, local_caller=self.terms.local_caller)
        began = time.monotonic()
        with self._progress(payload, job) as on_progress:
            if self.warm_engine.warming and on_progress is not None:
                on_progress(Progress("load"))
            self.warm_engine.wait_until_ready(cancel)
            waited = self._waited = time.monotonic() - began
            delivery, warnings = self._make(request, on_progress, cancel)
        self.warm_engine.mark_ready()
        result = answer(job, delivery, local_caller=self.terms.local_caller)
        result["warnings"] += warnings
        if not self._start_reported:
            self._start_reported = True
            parts = {**self.warm_engine.seconds, "waited": waited}
            result["cold_start"] = {part: round(seconds, 3) for part, seconds in parts.items()}
        return result

    def _make(
        self, request: Request, on_progress: ProgressCallback | None, cancel: CancelToken
    ) -> tuple[Delivery, list[str]]:
        """Make the video; if the device's memory runs out, try once more with a lower memory profile."""
        before = self.warm_engine.memory
        try:
            return self.warm_engine.service.generate(request, progress=on_progress, cancel=cancel), []
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        # After the except block: its traceback keeps the tensors that fill the memory.
        name = self.warm_engine.lower_memory()
        if name is None:
            raise _out_of_memory(before)
        try:
            delivery = self.warm_engine.service.generate(request, progress=on_progress, cancel=cancel)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        else:
            return delivery, [
                f"the device's memory ran out with memory={before}; the video was made with memory={name}"
            ]
        raise _out_of_memory(name)

    def _request(self, job: ParsedJob) -> Request:
        assert job.request is not None
        sinks = {*self.terms.sinks, str(self.warm_engine.capabilities.get("sink", ""))}
        if job.sink is not None and job.sink not in sinks:
            raise RequestError(
                f"{job.sink!r} is not a sink of this worker",
                field="request.sink",
                hint=f"choose {' or '.join(sorted(sinks - {''}))}",
                code="unknown_choice",
            )
        store = job.credentials.open() if job.credentials is not None else None
        sink = job.sink or ("s3" if store is not None else None)
        most = self.terms.answer_bytes
        room = max(most - ENVELOPE - _FIELDS, most // 2)
        return dataclasses.replace(job.request, job=job.id or None, store=store, sink=sink, answer_bytes=room)

    # --- progress and errors ------------------------------------------------------------------------------------------

    @contextmanager
    def _progress(self, payload: Mapping[str, Any], job: ParsedJob) -> Iterator[ProgressCallback | None]:
        post = self._poster(payload) if self._poster is not None else None
        if post is None:
            yield None
            return
        stream = self._streamer(payload) if self._streamer is not None else None
        sender = ProgressSender(post, stream=stream, secrets=_secrets(job))
        try:
            yield sender.report
        finally:
            # Before the answer is returned: a later progress update would overwrite it.
            sender.close()

    def _check_size(self, result: Mapping[str, Any]) -> None:
        size = len(json.dumps({"output": result}, ensure_ascii=False).encode())
        most = self.terms.answer_bytes - ENVELOPE
        if size > most:
            raise SinkError(
                f"the answer has {size} bytes, and the platform accepts {most}",
                field="output.sink",
                hint="send s3Config or configure S3, or make the video shorter or smaller",
                code="answer_too_large",
            )

    def _error_answer(self, error: BaseException, job: ParsedJob | None) -> dict[str, Any]:
        if isinstance(error, Cancelled) and self.stopped.is_set():
            error = EngineError(
                "the worker was stopped before the job was done",
                hint="send it again, or /retry it",
                code="worker_stopped",
            )
        if isinstance(error, EngineError):
            _LOG.warning("job failed (%s): %s", error.code, error)
        result: dict[str, Any] = {**error_answer(error, job, local_caller=self.terms.local_caller)}
        if result["error_code"] == "out_of_memory" or is_device_lost(error) or isinstance(error, ProcessLost):
            # The SDK removes it from the answer, and the platform restarts this worker.
            result["refresh_worker"] = True
        return result


def _defaults(terms: Terms) -> dict[str, Any]:
    """Return the worker's defaults of a job's fields; the others are set by the model."""
    values = input_defaults(terms.limits, terms.job_defaults)
    return {
        name: values[name]
        for name in ("num_frames", "fps", "sampling_steps", "guidance_scale", "seed")
        if name in values
    }


def _plan(plan: Plan, job: ParsedJob) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(plan), default=str, allow_nan=False))
    # The same fields as on the command line, but without the path of the folder, which belongs to this machine.
    result["weights"] = None if plan.weights is None else plan.weights.name
    result["warnings"] = [scrub(warning, _secrets(job)) for warning in plan.warnings]
    return result | {"engine_version": engine_version()}


def _secrets(job: ParsedJob) -> tuple[str, ...]:
    return () if job.credentials is None else tuple(job.credentials.secrets())


def _out_of_memory(memory: str) -> EngineError:
    return EngineError(
        f"the device's memory does not hold this job with memory={memory}",
        hint="ask for a smaller resolution, or use a worker with a larger GPU",
        code="out_of_memory",
    )


def _possible_secrets(config: Any) -> tuple[str, ...]:
    """Return texts that may be keys of the job, before anything has been checked.

    Only of the first few fields, because each log line is searched for each text; a job with more fields is rejected.
    """
    if not isinstance(config, Mapping):
        return ()
    return tuple(text for text in islice(config.values(), _KEYS) if isinstance(text, str) and len(text) <= _KEY)
