"""The book of an endpoint's jobs: what state each is in, and who may change it. No network, no processes."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from engine.serving.endpoint.limits import Limits

State = Literal["IN_QUEUE", "IN_PROGRESS", "COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"]
FINAL: frozenset[State] = frozenset({"COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"})
RETRIABLE: frozenset[State] = frozenset({"FAILED", "TIMED_OUT"})

#: The SDK knows a job a moment after it was given one, and forgets a stop signal for a job it does not know.
_SETTLE = 0.5


@dataclass
class Job:
    """One job, from submission until it is forgotten. Times are those of the book's clock."""

    id: str
    #: What the worker is given beside the id: `input`, and `webhook` and `s3Config` where the caller sent them. Nothing
    #: once the job cannot be given out again.
    given: Mapping[str, Any]
    sync: bool
    submitted: float
    execution_timeout: float
    ttl: float
    retention: float
    low_priority: bool = False
    webhook: str | None = None
    state: State = "IN_QUEUE"
    started: float | None = None
    ended: float | None = None
    queued: float = 0.0
    worker: str | None = None
    attempts: int = 0
    has_output: bool = False
    output: Any = None
    error: Any = None
    #: Pieces of a stream that were not fetched yet.
    stream: list[Any] = field(default_factory=list)
    #: Bytes of `given`, as it was sent.
    size: int = 0

    @property
    def final(self) -> bool:
        """Whether the job is over."""
        return self.state in FINAL

    def answer(self, now: float) -> dict[str, Any]:
        """Return what /status says."""
        told: dict[str, Any] = {"id": self.id, "status": self.state}
        if self.started is not None:
            told["delayTime"] = _milliseconds(self.started - self.queued)
            told["workerId"] = self.worker
            if self.ended is not None:
                told["executionTime"] = _milliseconds(self.ended - self.started)
        elif self.state == "IN_QUEUE":
            told["delayTime"] = _milliseconds(now - self.queued)
        if self.has_output:
            told["output"] = self.output
        if self.error is not None:
            told["error"] = self.error
        return told


@dataclass
class Stop:
    """A worker is to let go of a job: from when on it is told, whether it was, and when patience ends."""

    job: str
    due: float
    ends: float
    told: bool = False


class QueueFull(Exception):
    """No further job is taken now."""


class Jobs:
    """All jobs of one endpoint. Every method is plain code: call it from the one event loop that serves them."""

    def __init__(self, limits: Limits, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits = limits
        self.clock = clock
        self.counts: Counter[str] = Counter()
        #: Bytes of the inputs that are held.
        self.held = 0
        self.bell = Bell()
        #: Called with each job that has come to its end.
        self.on_final: Callable[[Job], None] = lambda _job: None
        self._jobs: dict[str, Job] = {}
        self._queue: list[str] = []
        #: Worker -> jobs it was given and has not let go of, whatever became of them.
        self._held: dict[str, set[str]] = {}
        self._stops: dict[str, list[Stop]] = {}

    # --- the caller's side --------------------------------------------------------------------------------------------

    def submit(
        self,
        given: Mapping[str, Any],
        *,
        sync: bool = False,
        policy: Mapping[str, float | bool] | None = None,
        webhook: str | None = None,
        retention: float | None = None,
        size: int = 0,
    ) -> Job:
        """Put a job into the queue. `policy` has the platform's names; its times are seconds here.

        `size` is how many bytes were sent. Raises QueueFull.
        """
        self._make_room(size)
        policy = policy or {}
        now = self.clock()
        kept = self.limits.sync_retention if sync else self.limits.run_retention
        job = Job(
            # The platform's own forms, so that whoever tells them apart can try it here.
            id=f"sync-{uuid.uuid4()}-l1" if sync else f"{uuid.uuid4()}-l1",
            given=given,
            sync=sync,
            submitted=now,
            queued=now,
            execution_timeout=policy.get("executionTimeout", self.limits.execution_timeout),
            ttl=policy.get("ttl", self.limits.ttl),
            retention=kept if retention is None else max(kept, retention),
            low_priority=bool(policy.get("lowPriority", False)),
            webhook=webhook,
            size=size,
        )
        self.held += size
        self._jobs[job.id] = job
        self._queue.append(job.id)
        self.bell.ring()
        return job

    def find(self, job_id: str) -> Job | None:
        """Return the job, or None if there is none or it is forgotten."""
        return self._jobs.get(job_id)

    def cancel(self, job: Job) -> None:
        """Withdraw a job; one that is over stays as it is."""
        if not job.final:
            self._stop(job)
            self._end(job, "CANCELLED")

    def retry(self, job: Job) -> bool:
        """Queue a failed or timed-out job again under its id. Raises QueueFull.

        False: its state does not allow that, or its input was let go to make room for other jobs.
        """
        if job.state not in RETRIABLE or not job.given:
            return False
        self._check_queue()
        job.attempts = 0
        self.counts["retried"] += 1
        self._requeue(job, last=True)
        return True

    def purge(self) -> int:
        """Withdraw all jobs that wait, and return how many these were."""
        waiting = [self._jobs[job_id] for job_id in self._queue]
        for job in waiting:
            self._end(job, "CANCELLED")
        return len(waiting)

    def take_stream(self, job: Job) -> list[Any]:
        """Return the pieces that were not fetched yet: each is told once."""
        pieces, job.stream = job.stream, []
        return pieces

    def numbers(self) -> dict[str, int]:
        """Return the job half of /health."""
        states = Counter(job.state for job in self._jobs.values())
        return {
            "completed": self.counts["COMPLETED"],
            "failed": self.counts["FAILED"] + self.counts["TIMED_OUT"],
            "inProgress": states["IN_PROGRESS"],
            "inQueue": len(self._queue),
            "retried": self.counts["retried"],
        }

    # --- the worker's side --------------------------------------------------------------------------------------------

    def take(self, worker: str, count: int = 1) -> list[Job]:
        """Give a worker the next jobs, those of low priority last."""
        ordered = sorted(self._queue, key=lambda job_id: self._jobs[job_id].low_priority)
        taken = [self._jobs[job_id] for job_id in ordered[:count]]
        for job in taken:
            self._queue.remove(job.id)
            job.state, job.worker, job.started = "IN_PROGRESS", worker, self.clock()
            job.attempts += 1
            self._held.setdefault(worker, set()).add(job.id)
        if taken:
            self.bell.ring()
        return taken

    def idle(self, worker: str) -> None:
        """A worker asks for work and says it has none: whatever it held is over, with or without an answer."""
        self.bell.ring()
        for job in self._release(worker):
            self._end(
                job,
                "FAILED",
                error="the worker took up no answer for this job: the handler's result could not be sent "
                "(is it JSON?); the platform would leave the job IN_PROGRESS until it times out",
            )

    def progress(self, job: Job, output: Any) -> None:
        """Show `output` while the job runs."""
        job.output, job.has_output = output, True
        self.bell.ring()

    def stream(self, job: Job, pieces: Sequence[Any]) -> None:
        """Keep pieces of a stream until they are fetched."""
        job.stream += pieces
        self.bell.ring()

    def finish(self, job: Job, result: Mapping[str, Any]) -> None:
        """Enter what the worker answers: `output` and `error` as it sent them."""
        error = result.get("error")
        job.output, job.has_output = result.get("output"), "output" in result
        self._end(job, "FAILED" if error else "COMPLETED", error=error)

    def fail(self, job: Job, error: str) -> None:
        """End a job for a reason of the endpoint's own."""
        job.output, job.has_output = None, False
        self._end(job, "FAILED", error=error)

    def gone(self, worker: str, why: str) -> None:
        """A worker's process has ended: its jobs go back to the head of the queue, or fail if that was often."""
        for job in self._release(worker):
            if job.attempts < self.limits.attempts:
                self.counts["retried"] += 1
                self._requeue(job, last=False)
            else:
                self.fail(job, f"{why} during the job, {job.attempts} times in a row")
        self.bell.ring()

    def busy(self, worker: str) -> bool:
        """Return whether a worker has a job that goes on."""
        return any(self._runs(job_id, worker) for job_id in self._held.get(worker, ()))

    def stop_signals(self, worker: str) -> list[str]:
        """Return the jobs that a worker is to let go of now; each is told once."""
        now = self.clock()
        due = [stop for stop in self._stops.get(worker, ()) if not stop.told and stop.due <= now]
        for stop in due:
            stop.told = True
        return [stop.job for stop in due]

    # --- time ---------------------------------------------------------------------------------------------------------

    def tick(self) -> list[str]:
        """Time out and forget what is due. Return the workers that did not let go of a stopped job in time."""
        now = self.clock()
        for job in list(self._jobs.values()):
            if job.final:
                if job.ended is not None and now - job.ended >= job.retention:
                    self._forget(job)
            elif now - job.submitted >= job.ttl:
                # As on the platform: the job is gone, running or not, and /status answers 404.
                self._stop(job)
                self._end(job, "TIMED_OUT")
                self._forget(job)
            elif job.started is not None and job.state == "IN_PROGRESS" and now - job.started >= job.execution_timeout:
                self._stop(job)
                text = f"the job ran longer than its execution timeout of {job.execution_timeout:g} s"
                self._end(job, "TIMED_OUT", error=text)
        if any(not stop.told and stop.due <= now for stop in self._all_stops()):
            self.bell.ring()
        return [worker for worker in self._stops if self._stubborn(worker, now)]

    def _stubborn(self, worker: str, now: float) -> bool:
        late = [stop for stop in self._stops[worker] if stop.ends <= now]
        if not late:
            return False
        if self.busy(worker):
            # It works on other jobs as well, which are worth more than the one that may hang.
            self._stops[worker] = [stop for stop in self._stops[worker] if stop not in late]
            return False
        return True

    def _all_stops(self) -> Iterator[Stop]:
        for stops in self._stops.values():
            yield from stops

    def _stop(self, job: Job) -> None:
        if job.state == "IN_PROGRESS" and job.worker is not None and job.started is not None:
            now = self.clock()
            due = max(now, job.started + _SETTLE)
            self._stops.setdefault(job.worker, []).append(Stop(job.id, due, due + self.limits.grace))

    def _release(self, worker: str) -> list[Job]:
        self._stops.pop(worker, None)
        return [self._jobs[job_id] for job_id in self._held.pop(worker, ()) if self._runs(job_id, worker)]

    def _runs(self, job_id: str, worker: str) -> bool:
        # It may be over or forgotten, or have been retried meanwhile and be another worker's.
        job = self._jobs.get(job_id)
        return job is not None and job.state == "IN_PROGRESS" and job.worker == worker

    def _check_queue(self) -> None:
        most = self.limits.queue_jobs
        if most and len(self._queue) >= most:
            raise QueueFull(f"{len(self._queue)} jobs wait already")

    def _make_room(self, size: int) -> None:
        """Raise QueueFull if there is no room for an input of `size` bytes.

        Inputs that /retry alone could still need are let go first, the oldest of them.
        """
        self._check_queue()
        most = self.limits.queue_bytes
        if not most or self.held + size <= most:
            return
        spare = sorted((job for job in self._jobs.values() if job.final and job.size), key=lambda job: job.ended or 0.0)
        if self.held - sum(job.size for job in spare) + size > most:
            raise QueueFull(f"the jobs that wait or run hold {self.held} bytes already")
        for job in spare:
            if self.held + size <= most:
                break
            self._let_go(job)

    def _let_go(self, job: Job) -> None:
        self.held -= job.size
        job.given, job.size = {}, 0

    def _forget(self, job: Job) -> None:
        self._let_go(job)
        del self._jobs[job.id]

    def _requeue(self, job: Job, *, last: bool) -> None:
        job.state, job.started, job.ended, job.worker = "IN_QUEUE", None, None, None
        job.queued = self.clock()
        job.output, job.has_output, job.error, job.stream = None, False, None, []
        self._queue.insert(len(self._queue) if last else 0, job.id)
        self.bell.ring()

    def _end(self, job: Job, state: State, *, error: Any = None) -> None:
        if job.id in self._queue:
            self._queue.remove(job.id)
        if state in ("CANCELLED", "TIMED_OUT"):
            # What is there is progress, not a result.
            job.output, job.has_output = None, False
        job.state, job.error, job.ended = state, error, self.clock()
        if state not in RETRIABLE:
            self._let_go(job)
        self.counts[state] += 1
        self.bell.ring()
        self.on_final(job)


class Bell:
    """Wakes all who wait for something to change."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def ring(self) -> None:
        """Wake them."""
        self._event.set()
        self._event = asyncio.Event()

    async def until(self, ready: Callable[[], bool], seconds: float) -> bool:
        """Wait until `ready()`, at most `seconds`; return whether it is so. It is asked at each ring."""
        end = time.monotonic() + seconds
        while not ready():
            left = end - time.monotonic()
            if left <= 0:
                return False
            try:
                await asyncio.wait_for(self._event.wait(), left)
            except TimeoutError:
                return ready()
        return True


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)
