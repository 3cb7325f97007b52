"""Hands jobs to workers and records their answers: one queue, and one thread per worker."""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from engine.components import JobWorker
from engine.errors import Cancelled, EngineError, RequestError, WorkerLost
from engine.serving.batch.jobs import JobFile, Line
from engine.serving.batch.results import Results
from engine.serving.jobs.answers import error_answer

#: Number of worker processes that may end during a job before the job fails.
_MAX_DEATHS = 2

Say = Callable[[str], None]


class BatchRun:
    """One run over the pending jobs of a file."""

    def __init__(self, jobs: JobFile, results: Results, pending: Sequence[Line], say: Say, warn: Say) -> None:
        """`say` gets lines about progress, `warn` lines about problems of workers; both from any thread."""
        #: Status -> number of jobs.
        self.counts: Counter[str] = Counter()
        #: Error code -> number of jobs.
        self.codes: Counter[str] = Counter()
        self._began = time.monotonic()
        #: The run was stopped before all jobs were done.
        self.interrupted = False
        self._jobs, self._results, self._say, self._warn = jobs, results, say, warn
        self._total = len(pending)
        self._waiting = deque(pending)
        self._deaths: Counter[str] = Counter()
        self._workers: Sequence[JobWorker] = ()
        self._lock = threading.Lock()
        self._errors: list[BaseException] = []

    @property
    def left(self) -> int:
        """Jobs without a result."""
        return self._total - self.counts.total()

    def process(self, workers: Sequence[JobWorker]) -> None:
        """Do the jobs; return when all are done, or, after `drain`, when the running ones are.

        If a worker fails, the others do its jobs; its error is raised only if jobs are left. An error that is caused by
        neither a job nor a worker, such as a full disk or a bug, stops the run and is raised.
        """
        self._workers = workers
        threads = [threading.Thread(target=self._serve, args=(worker,), daemon=True) for worker in workers]
        for thread in threads:
            thread.start()
        for thread in threads:
            # With a timeout, because Python handles signals only between the calls.
            while thread.is_alive():
                thread.join(0.2)
        for error in self._errors:
            if not isinstance(error, EngineError) or (self.left and not self.interrupted):
                raise error

    def drain(self) -> None:
        """Start no more jobs."""
        self.interrupted = True

    def stop(self) -> None:
        """Stop the running jobs at their next check; they get no result."""
        self.drain()
        for worker in self._workers:
            worker.stop()

    def _serve(self, worker: JobWorker) -> None:
        try:
            try:
                fresh = False
                while (line := self._next()) is not None:
                    fresh = self._do(worker, line, fresh=fresh)
            finally:
                worker.close()
        except Cancelled:
            # The run was stopped.
            pass
        except EngineError as error:
            self._errors.append(error)
            self._warn(f"a worker failed: {error}")
        except BaseException as error:  # noqa: BLE001 - raised in the main thread
            self._errors.append(error)
            self.stop()

    def _next(self) -> Line | None:
        with self._lock:
            return self._waiting.popleft() if self._waiting and not self.interrupted else None

    def _do(self, worker: JobWorker, line: Line, *, fresh: bool) -> bool:
        """Do a job; a worker that is not `fresh` is restarted first. Return whether it is fresh afterwards."""
        began = time.monotonic()
        try:
            job = self._jobs.job(line)
        except RequestError as error:
            self._record(line, error_answer(error, local_caller=True), began)
            return fresh
        if not fresh:
            try:
                _restart(worker)
            except BaseException:
                # Not caused by the job: another worker may do it.
                self._waiting.appendleft(line)
                raise
            if self.interrupted:
                # The start may have taken minutes.
                self._waiting.appendleft(line)
                return True
        self._results.begin(line)
        self._say(f"{line.id}: begins (line {line.number})")
        try:
            answer = dict(worker.work(job, _tenths(lambda text: self._say(f"{line.id}: {text}"))))
        except WorkerLost as error:
            self._handle_lost(line, error, began)
            return False
        if answer.get("error_code") == "worker_stopped":
            # The job has not failed: the next batch does it.
            self._results.discard(line)
            return False
        fresh = not answer.pop("refresh_worker", False)
        self._record(line, answer, began)
        return fresh

    def _handle_lost(self, line: Line, error: WorkerLost, began: float) -> None:
        """Queue the job again, or record it as failed if a second process ended during it."""
        self._warn(f"{line.id}: {error}")
        self._results.discard(line)
        self._deaths[line.id] += 1
        if self._deaths[line.id] < _MAX_DEATHS or self.interrupted:
            self._waiting.appendleft(line)
        else:
            self._record(line, error_answer(error, local_caller=True), began)

    def _record(self, line: Line, answer: Mapping[str, Any], began: float) -> None:
        took = time.monotonic() - began
        status = self._results.add(line, answer, took)
        with self._lock:
            self.counts[status] += 1
            count = self.counts.total()
            if status == "failed":
                self.codes[str(answer["error_code"])] += 1
            failed = ", ".join(f"{number} {code}" for code, number in sorted(self.codes.items()))
        about = f" ({answer['error_code']}): {answer['error']}" if status == "failed" else ""
        where = f"{count} of {self._total}" + (f" (failed: {failed})" if failed else "") + self._remaining(count)
        self._say(f"{line.id}: {status} after {took:.1f} s, {where}{about}")

    def _remaining(self, count: int) -> str:
        """Return text with the remaining time at the current pace; "" if nothing is left."""
        if count >= self._total:
            return ""
        minutes, seconds = divmod(round((time.monotonic() - self._began) / count * (self._total - count)), 60)
        return f", about {minutes}:{seconds:02d} left"


@contextmanager
def interruptible(run: BatchRun, grace: float, say: Say) -> Iterator[None]:
    """On the first interrupt (Ctrl-C, SIGTERM) start no more jobs, and stop the running ones after `grace` seconds.

    A second interrupt stops them at their next check, a third one at once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    timer = threading.Timer(grace, run.stop)
    timer.daemon = True
    signals = 0

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal signals
        signals += 1
        if signals == 1:
            run.drain()
            timer.start()
            say(f"stopping: running jobs have {grace:g} s to finish")
        elif signals == 2:
            run.stop()
        else:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        timer.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)


def _restart(worker: JobWorker) -> None:
    """Start a worker, after ending its previous process if there is one."""
    worker.close()
    try:
        worker.start()
    except WorkerLost:
        # Try once more.
        worker.close()
        worker.start()


def _tenths(write: Say) -> Callable[[Mapping[str, Any]], None]:
    """Return a function that writes a line of a job's progress for each tenth of it."""
    last = 0

    def report(progress: Mapping[str, Any]) -> None:
        nonlocal last
        if (tenth := progress["percent"] // 10) > last:
            last = tenth
            left = progress["seconds_left"]
            more = "" if left is None else f", {left // 60}:{left % 60:02d} left"
            write(f"{progress['percent']:3d}%  {progress['stage']}{more}")

    return report
