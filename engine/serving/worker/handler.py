"""A job -> its answer: what the SDK calls for each job, one at a time."""

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
from engine.errors import Cancelled, EngineError, RequestError, SinkError
from engine.redaction import scrub
from engine.serving.jobs.answers import answer, engine_version, error_answer
from engine.serving.jobs.defaults import HABITS, Habits, defaults
from engine.serving.jobs.job import Job, parse_job
from engine.serving.jobs.schema import LIMITS, SECRET, Limits
from engine.serving.worker.cancellable import in_thread
from engine.serving.worker.cuda_errors import device_state, is_device_lost, is_out_of_memory
from engine.serving.worker.logs import Lines
from engine.serving.worker.progress_sender import Post, Pump
from engine.serving.worker.selftest import selftest
from engine.serving.worker.warm_engine import Keeper

_LOG = logging.getLogger(__name__)

#: Bytes that the platform adds around what a handler returns.
ENVELOPE = 1024
#: Characters of a job's id that are logged, texts of a job's `s3Config` that are hidden, and characters of each.
_NAME, _KEYS, _KEY = 128, 16, 8192
#: Bytes that an answer needs beside the video itself.
_FIELDS = 8192


@dataclass(frozen=True)
class Terms:
    """What a worker lets a job ask for, and how long an answer may be."""

    limits: Limits = LIMITS
    #: What is taken for a job that does not say.
    habits: Habits = HABITS
    #: Most bytes of an answer, as the platform counts them.
    answer_bytes: int = 10_000_000
    #: Sinks that a job may choose, beside the worker's own.
    sinks: tuple[str, ...] = ("s3", "base64")
    #: Whoever reads the answers has the machine, and may read its paths.
    own: bool = False
    #: Folder from which a job's relative paths count; None: the process' own.
    folder: Path | None = None


class Handler:
    """Answers jobs. What goes wrong is in the answer; only a cancellation is raised, as the SDK wants it."""

    def __init__(
        self,
        keeper: Keeper,
        terms: Terms,
        *,
        poster: Callable[[Mapping[str, Any]], Post | None] | None = None,
        lines: Lines | None = None,
    ) -> None:
        """`poster` returns what sends a job's progress, None where nobody listens."""
        self.keeper = keeper
        self.terms = terms
        #: Set: the job that runs ends at its next check, and none is begun.
        self.stopped = threading.Event()
        self._poster = poster
        self._lines = lines or Lines()
        self._began = time.monotonic()
        self._done = self._failed = 0
        self._told_start = False
        #: Seconds that the job at work waited for imports and weights.
        self._waited = 0.0

    async def handle(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the job's answer. Raises CancelledError, once the device is free again."""
        name = given.get("id")
        self._lines.begin(name[:_NAME] if isinstance(name, str) else "", _texts(given.get(SECRET)))
        try:
            return await in_thread(lambda cancel: self._answer(given, cancel), self.stopped)
        finally:
            self._lines.end()

    def _answer(self, given: Mapping[str, Any], cancel: CancelToken) -> dict[str, Any]:
        began = time.monotonic()
        self._waited = 0.0
        job: Job | None = None
        try:
            if self.stopped.is_set():
                raise Cancelled
            terms = self.terms
            job = parse_job(given, limits=terms.limits, habits=terms.habits, folder=terms.folder)
            _LOG.info("job begins: %s", job.action)
            found = self._act(job, given, cancel)
            self._measure(found)
        except BaseException as error:  # noqa: BLE001 - each is answered; the SDK would send a traceback to the caller
            self._failed += 1
            return self._refusal(error, job)
        if "timings" in found:
            found["overhead"] = round(
                max(0.0, time.monotonic() - began - sum(found["timings"].values()) - self._waited), 3
            )
        self._done += 1
        _LOG.info("job is done in %.1f s", time.monotonic() - began)
        return found

    def _act(self, job: Job, given: Mapping[str, Any], cancel: CancelToken) -> dict[str, Any]:
        match job.action:
            case "health":
                return self.health()
            case "capabilities":
                return self.capabilities()
            case "plan":
                return _plan(self.keeper.service.plan(self._request(job), cancel=cancel), job)
            case "selftest":
                with self._progress(given, job) as tell:
                    # Two models are not loaded at once, and here a wait can be cancelled.
                    self.keeper.ready(cancel)
                    device = str(self.keeper.capabilities.get("device", "auto"))
                    found = selftest(self.keeper.service, device=device, progress=tell, cancel=cancel)
                return found | {"engine_version": engine_version(), "warnings": []}
            case "generate":
                return self._generate(job, given, cancel)

    # --- what a job may ask -------------------------------------------------------------------------------------------

    def health(self) -> dict[str, Any]:
        """Say how the worker is; needs no weights and no device."""
        keeper = self.keeper
        told = {
            "status": keeper.state,
            "loaded": keeper.state == "ready",
            "model": keeper.capabilities.get("model"),
            "memory": keeper.memory,
            **device_state(str(keeper.capabilities.get("device", "auto")), loaded=keeper.state == "ready"),
            "versions": keeper.capabilities.get("versions", {}),
            "engine_version": engine_version(),
            "uptime": round(time.monotonic() - self._began, 3),
            "jobs_done": self._done,
            "jobs_failed": self._failed,
            "warnings": [],
        }
        if keeper.failure is not None:
            # Not `error`, which would fail the job that asked.
            known = isinstance(keeper.failure, EngineError)
            told["problem"] = scrub(str(keeper.failure)) if known else "internal error; see the worker's log"
        return told

    def capabilities(self) -> dict[str, Any]:
        """Say what the worker was booted with and what a job may choose."""
        told = dict(self.keeper.capabilities)
        return told | {
            "sinks": sorted({*self.terms.sinks, str(told.get("sink", ""))} - {""}),
            "limits": dataclasses.asdict(self.terms.limits) | {"answer_bytes": self.terms.answer_bytes},
            "defaults": _defaults(self.terms),
            "actions": ["generate", "plan", "health", "capabilities", "selftest"],
            "engine_version": engine_version(),
            "warnings": [],
        }

    def _generate(self, job: Job, given: Mapping[str, Any], cancel: CancelToken) -> dict[str, Any]:
        request = self._request(job)
        resumed = self.keeper.service.resume(request, cancel=cancel)
        if resumed is not None:
            return answer(job, resumed, own=self.terms.own)
        began = time.monotonic()
        with self._progress(given, job) as tell:
            if self.keeper.warming and tell is not None:
                tell(Progress("load"))
            self.keeper.ready(cancel)
            waited = self._waited = time.monotonic() - began
            delivery, warnings = self._made(request, tell, cancel)
        self.keeper.note()
        found = answer(job, delivery, own=self.terms.own)
        found["warnings"] += warnings
        if not self._told_start:
            self._told_start = True
            parts = {**self.keeper.seconds, "waited": waited}
            found["cold_start"] = {part: round(seconds, 3) for part, seconds in parts.items()}
        return found

    def _made(self, request: Request, tell: ProgressCallback | None, cancel: CancelToken) -> tuple[Delivery, list[str]]:
        """Make the video, a second time with less on the device if its memory runs out."""
        before = self.keeper.memory
        try:
            return self.keeper.service.generate(request, progress=tell, cancel=cancel), []
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        # Outside of the except: the traceback holds what fills the memory.
        name = self.keeper.lower()
        if name is None:
            raise _out_of_memory(before)
        try:
            delivery = self.keeper.service.generate(request, progress=tell, cancel=cancel)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        else:
            return delivery, [
                f"the device's memory ran out with memory={before}; the video was made with memory={name}"
            ]
        raise _out_of_memory(name)

    def _request(self, job: Job) -> Request:
        assert job.request is not None
        known = {*self.terms.sinks, str(self.keeper.capabilities.get("sink", ""))}
        if job.sink is not None and job.sink not in known:
            raise RequestError(
                f"{job.sink!r} is no sink of this worker",
                field="request.sink",
                hint=f"choose {' or '.join(sorted(known - {''}))}",
                code="unknown_choice",
            )
        own = job.credentials.open() if job.credentials is not None else None
        sink = job.sink or ("s3" if own is not None else None)
        most = self.terms.answer_bytes
        room = max(most - ENVELOPE - _FIELDS, most // 2)
        return dataclasses.replace(job.request, job=job.id or None, store=own, sink=sink, answer_bytes=room)

    # --- around the work ----------------------------------------------------------------------------------------------

    @contextmanager
    def _progress(self, given: Mapping[str, Any], job: Job) -> Iterator[ProgressCallback | None]:
        post = self._poster(given) if self._poster is not None else None
        if post is None:
            yield None
            return
        pump = Pump(post, secrets=_secrets(job))
        try:
            yield pump.tell
        finally:
            # Before the answer is returned: an update that comes after it would overwrite it.
            pump.close()

    def _measure(self, found: Mapping[str, Any]) -> None:
        size = len(json.dumps({"output": found}, ensure_ascii=False).encode())
        most = self.terms.answer_bytes - ENVELOPE
        if size > most:
            raise SinkError(
                f"the answer has {size} bytes and the platform carries {most}",
                field="output.sink",
                hint="send s3Config or configure S3, or make the video shorter or smaller",
                code="answer_too_large",
            )

    def _refusal(self, error: BaseException, job: Job | None) -> dict[str, Any]:
        if isinstance(error, Cancelled) and self.stopped.is_set():
            error = EngineError(
                "the worker was told to end before the job was done",
                hint="send it again, or /retry it",
                code="worker_stopped",
            )
        if isinstance(error, EngineError):
            _LOG.warning("job is refused (%s): %s", error.code, error)
        told: dict[str, Any] = {**error_answer(error, job, own=self.terms.own)}
        if told["error_code"] == "out_of_memory" or is_device_lost(error):
            # The SDK takes it out of the answer, and the platform starts this worker anew.
            told["refresh_worker"] = True
        return told


def _defaults(terms: Terms) -> dict[str, Any]:
    """Return what a job takes here that does not say; what is not among it is the model's."""
    found = defaults(terms.limits, terms.habits)
    return {
        name: found[name] for name in ("num_frames", "fps", "sampling_steps", "guidance_scale", "seed") if name in found
    }


def _plan(plan: Plan, job: Job) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(plan), default=str, allow_nan=False))
    # As the command line's, but for the folder: it is the machine's business.
    told["weights"] = None if plan.weights is None else plan.weights.name
    told["warnings"] = [scrub(warning, _secrets(job)) for warning in plan.warnings]
    return told | {"engine_version": engine_version()}


def _secrets(job: Job) -> tuple[str, ...]:
    return () if job.credentials is None else tuple(job.credentials.secrets())


def _out_of_memory(memory: str) -> EngineError:
    return EngineError(
        f"the device's memory does not hold this job with memory={memory}",
        hint="ask for a smaller resolution, or use a worker with a larger GPU",
        code="out_of_memory",
    )


def _texts(config: Any) -> tuple[str, ...]:
    """Return what may be a key of the job's, before anything has been checked.

    Of the first few fields, since each line of the log is searched for each text; a job with more of them is refused.
    """
    if not isinstance(config, Mapping):
        return ()
    return tuple(text for text in islice(config.values(), _KEYS) if isinstance(text, str) and len(text) <= _KEY)
