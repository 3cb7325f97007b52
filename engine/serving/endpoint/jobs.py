"""The job queue of an endpoint: the state of each job and the changes of it. No network, no processes."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from engine.serving.endpoint.limits import EndpointLimits

State = Literal["IN_QUEUE", "IN_PROGRESS", "COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"]
FINAL: frozenset[State] = frozenset({"COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"})
RETRIABLE: frozenset[State] = frozenset({"FAILED", "TIMED_OUT"})

#: The SDK registers a job a moment after it took it, and drops a stop signal for a job it does not know yet.
_SETTLE = 0.5


@dataclass
class EndpointJob:
    """One job, from submission until it is removed. Times are read from the queue's clock."""

    id: str
    #: What the worker gets beside the id: `input`, and `webhook` and `s3Config` if the caller sent them. Empty once the
    #: job cannot be handed out again.
    payload: Mapping[str, Any]
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
    #: Chunks of a stream that were not fetched yet.
    stream: list[Any] = field(default_factory=list)
    #: Size of `payload` in bytes, as it was sent.
    size: int = 0

    @property
    def final(self) -> bool:
        """Whether the job is over."""
        return self.state in FINAL

    def answer(self, now: float) -> dict[str, Any]:
        """Return the answer of /status."""
        report: dict[str, Any] = {"id": self.id, "status": self.state}
        if self.started is not None:
            report["delayTime"] = _milliseconds(self.started - self.queued)
            report["workerId"] = self.worker
            if self.ended is not None:
                report["executionTime"] = _milliseconds(self.ended - self.started)
        elif self.state == "IN_QUEUE":
            report["delayTime"] = _milliseconds(now - self.queued)
        if self.has_output:
            report["output"] = self.output
        if self.error is not None:
            report["error"] = self.error
        return report


@dataclass
class StopRequest:
    """A worker must stop a job: when the signal is due, whether it was sent, and when the worker is killed."""

    job: str
    due: float
    ends: float
    sent: bool = False


class QueueFull(Exception):
    """The queue accepts no further job now."""


class JobQueue:
    """All jobs of one endpoint. No method blocks; call them only from the event loop that serves the endpoint."""

    def __init__(self, limits: EndpointLimits, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits = limits
        self.clock = clock
        self.counts: Counter[str] = Counter()
        #: Bytes of inputs that are held in memory.
        self.held_bytes = 0
        self.changed = ChangeCondition()
        #: Called with each job that has ended.
        self.on_final: Callable[[EndpointJob], None] = lambda _job: None
        #: Called with each job that is removed.
        self.on_forget: Callable[[EndpointJob], None] = lambda _job: None
        self._jobs: dict[str, EndpointJob] = {}
        self._queue: list[str] = []
        #: Worker -> jobs that it took and has not released, whatever their state.
        self._held: dict[str, set[str]] = {}
        self._stops: dict[str, list[StopRequest]] = {}

    # --- for callers --------------------------------------------------------------------------------------------------

    def submit(
        self,
        payload: Mapping[str, Any],
        *,
        sync: bool = False,
        policy: Mapping[str, float | bool] | None = None,
        webhook: str | None = None,
        retention: float | None = None,
        size: int = 0,
    ) -> EndpointJob:
        """Put a job into the queue. `policy` has the platform's field names, with times in seconds.

        `size` is the number of bytes that were sent. Raises QueueFull.
        """
        self._make_room(size)
        policy = policy or {}
        now = self.clock()
        retention_default = self.limits.sync_retention if sync else self.limits.run_retention
        job = EndpointJob(
            # The platform's own id formats: some clients depend on them.
            id=f"sync-{uuid.uuid4()}-l1" if sync else f"{uuid.uuid4()}-l1",
            payload=payload,
            sync=sync,
            submitted=now,
            queued=now,
            execution_timeout=policy.get("executionTimeout", self.limits.execution_timeout),
            ttl=policy.get("ttl", self.limits.ttl),
            retention=retention_default if retention is None else max(retention_default, retention),
            low_priority=bool(policy.get("lowPriority", False)),
            webhook=webhook,
            size=size,
        )
        self.held_bytes += size
        self._jobs[job.id] = job
        self._queue.append(job.id)
        self.changed.notify_all()
        return job

    def find(self, job_id: str) -> EndpointJob | None:
        """Return the job, or None if it does not exist or was removed."""
        return self._jobs.get(job_id)

    def cancel(self, job: EndpointJob) -> None:
        """Cancel a job; one that has ended does not change."""
        if not job.final:
            self._stop(job)
            self._end(job, "CANCELLED")

    def retry(self, job: EndpointJob) -> bool:
        """Queue a failed or timed-out job again under its id. Raises QueueFull.

        False: its state does not allow a retry, or its input was dropped to make room for other jobs.
        """
        if job.state not in RETRIABLE or not job.payload:
            return False
        self._check_queue()
        job.attempts = 0
        self.counts["retried"] += 1
        self._requeue(job, last=True)
        return True

    def purge(self) -> int:
        """Cancel all waiting jobs and return their number."""
        waiting = [self._jobs[job_id] for job_id in self._queue]
        for job in waiting:
            self._end(job, "CANCELLED")
        return len(waiting)

    def take_stream(self, job: EndpointJob) -> list[Any]:
        """Return the chunks that were not fetched yet; each is returned once."""
        pieces, job.stream = job.stream, []
        return pieces

    def numbers(self) -> dict[str, int]:
        """Return the counts of jobs for /health."""
        states = Counter(job.state for job in self._jobs.values())
        return {
            "completed": self.counts["COMPLETED"],
            "failed": self.counts["FAILED"] + self.counts["TIMED_OUT"],
            "inProgress": states["IN_PROGRESS"],
            "inQueue": len(self._queue),
            "retried": self.counts["retried"],
        }

    # --- for workers --------------------------------------------------------------------------------------------------

    def take(self, worker: str, count: int = 1) -> list[EndpointJob]:
        """Hand the next jobs to a worker, low priority last."""
        ordered = sorted(self._queue, key=lambda job_id: self._jobs[job_id].low_priority)
        taken = [self._jobs[job_id] for job_id in ordered[:count]]
        for job in taken:
            self._queue.remove(job.id)
            job.state, job.worker, job.started = "IN_PROGRESS", worker, self.clock()
            job.attempts += 1
            self._held.setdefault(worker, set()).add(job.id)
        if taken:
            self.changed.notify_all()
        return taken

    def worker_idle(self, worker: str) -> None:
        """Note that a worker has no job: a job that it still holds got no answer and fails."""
        self.changed.notify_all()
        for job in self._release(worker):
            self._end(
                job,
                "FAILED",
                error="the worker sent no answer for this job: the handler's result could not be sent "
                "(is it JSON?); the platform would leave the job IN_PROGRESS until it times out",
            )

    def progress(self, job: EndpointJob, output: Any) -> None:
        """Set `output`, which /status shows while the job runs."""
        job.output, job.has_output = output, True
        self.changed.notify_all()

    def stream(self, job: EndpointJob, pieces: Sequence[Any]) -> None:
        """Keep chunks of a stream until they are fetched."""
        job.stream += pieces
        self.changed.notify_all()

    def finish(self, job: EndpointJob, result: Mapping[str, Any]) -> None:
        """End a job with the worker's answer: `output` and `error` as it sent them."""
        error = result.get("error")
        job.output, job.has_output = result.get("output"), "output" in result
        self._end(job, "FAILED" if error else "COMPLETED", error=error)

    def fail(self, job: EndpointJob, error: str) -> None:
        """Fail a job for a reason that the endpoint found itself."""
        job.output, job.has_output = None, False
        self._end(job, "FAILED", error=error)

    def worker_ended(self, worker: str, why: str) -> None:
        """Note that a worker's process ended: its jobs go to the head of the queue, or fail after too many attempts."""
        for job in self._release(worker):
            if job.attempts < self.limits.attempts:
                self.counts["retried"] += 1
                self._requeue(job, last=False)
            else:
                self.fail(job, f"{why} during the job, {job.attempts} times in a row")
        self.changed.notify_all()

    def busy(self, worker: str) -> bool:
        """Return whether a worker has a running job."""
        return any(self._runs(job_id, worker) for job_id in self._held.get(worker, ()))

    def stop_signals(self, worker: str) -> list[str]:
        """Return the ids of jobs that a worker must stop now; each is returned once."""
        now = self.clock()
        due = [stop for stop in self._stops.get(worker, ()) if not stop.sent and stop.due <= now]
        for stop in due:
            stop.sent = True
        return [stop.job for stop in due]

    # --- time ---------------------------------------------------------------------------------------------------------

    def tick(self) -> list[str]:
        """Time out and remove jobs that are due. Return the workers that did not stop a cancelled job in time."""
        now = self.clock()
        for job in list(self._jobs.values()):
            if job.final:
                if job.ended is not None and now - job.ended >= job.retention:
                    self._forget(job)
            elif now - job.submitted >= job.ttl:
                # As on the platform: the job is removed, running or not, and /status answers 404.
                self._stop(job)
                self._end(job, "TIMED_OUT")
                self._forget(job)
            elif job.started is not None and job.state == "IN_PROGRESS" and now - job.started >= job.execution_timeout:
                self._stop(job)
                text = f"the job ran longer than its execution timeout of {job.execution_timeout:g} s"
                self._end(job, "TIMED_OUT", error=text)
        if any(not stop.sent and stop.due <= now for stop in self._all_stops()):
            self.changed.notify_all()
        return [worker for worker in self._stops if self._ignores_stop(worker, now)]

    def _ignores_stop(self, worker: str, now: float) -> bool:
        late = [stop for stop in self._stops[worker] if stop.ends <= now]
        if not late:
            return False
        if self.busy(worker):
            # It works on other jobs as well; losing them would cost more than the one that may hang.
            self._stops[worker] = [stop for stop in self._stops[worker] if stop not in late]
            return False
        return True

    def _all_stops(self) -> Iterator[StopRequest]:
        for stops in self._stops.values():
            yield from stops

    def _stop(self, job: EndpointJob) -> None:
        if job.state == "IN_PROGRESS" and job.worker is not None and job.started is not None:
            now = self.clock()
            due = max(now, job.started + _SETTLE)
            self._stops.setdefault(job.worker, []).append(StopRequest(job.id, due, due + self.limits.grace))

    def _release(self, worker: str) -> list[EndpointJob]:
        self._stops.pop(worker, None)
        return [self._jobs[job_id] for job_id in self._held.pop(worker, ()) if self._runs(job_id, worker)]

    def _runs(self, job_id: str, worker: str) -> bool:
        # It may have ended or been removed, or was retried meanwhile by another worker.
        job = self._jobs.get(job_id)
        return job is not None and job.state == "IN_PROGRESS" and job.worker == worker

    def _check_queue(self) -> None:
        most = self.limits.queue_jobs
        if most and len(self._queue) >= most:
            raise QueueFull(f"{len(self._queue)} jobs are waiting already")

    def _make_room(self, size: int) -> None:
        """Raise QueueFull if there is no room for an input of `size` bytes.

        To make room, inputs that only /retry could still need are dropped, the oldest first.
        """
        self._check_queue()
        most = self.limits.queue_bytes
        if not most or self.held_bytes + size <= most:
            return
        spare = sorted((job for job in self._jobs.values() if job.final and job.size), key=lambda job: job.ended or 0.0)
        if self.held_bytes - sum(job.size for job in spare) + size > most:
            raise QueueFull(f"waiting and running jobs hold {self.held_bytes} bytes already")
        for job in spare:
            if self.held_bytes + size <= most:
                break
            self._drop_input(job)

    def _drop_input(self, job: EndpointJob) -> None:
        self.held_bytes -= job.size
        job.payload, job.size = {}, 0

    def _forget(self, job: EndpointJob) -> None:
        self._drop_input(job)
        del self._jobs[job.id]
        self.on_forget(job)

    def _requeue(self, job: EndpointJob, *, last: bool) -> None:
        job.state, job.started, job.ended, job.worker = "IN_QUEUE", None, None, None
        job.queued = self.clock()
        job.output, job.has_output, job.error, job.stream = None, False, None, []
        self._queue.insert(len(self._queue) if last else 0, job.id)
        self.changed.notify_all()

    def _end(self, job: EndpointJob, state: State, *, error: Any = None) -> None:
        if job.id in self._queue:
            self._queue.remove(job.id)
        if state in ("CANCELLED", "TIMED_OUT"):
            # The output so far is progress, not a result.
            job.output, job.has_output = None, False
        job.state, job.error, job.ended = state, error, self.clock()
        if state not in RETRIABLE:
            self._drop_input(job)
        self.counts[state] += 1
        self.changed.notify_all()
        self.on_final(job)


class ChangeCondition:
    """Wakes all waiting tasks whenever something changes, like asyncio.Condition without a lock."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def notify_all(self) -> None:
        """Wake all waiting tasks."""
        self._event.set()
        self._event = asyncio.Event()

    async def wait_for(self, ready: Callable[[], bool], seconds: float) -> bool:
        """Wait at most `seconds` until `ready()` is true, which is tested at each change; return whether it is."""
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
