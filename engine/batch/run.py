"""Jobs to workers, answers to the results: one queue, and a thread a worker."""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from engine.batch.jobs import Jobs, Line
from engine.batch.results import Results
from engine.components import JobWorker
from engine.errors import Cancelled, EngineError, RequestError, WorkerLost
from engine.jobs.answers import error_answer

#: Processes that a job may take down with it before it counts as failed.
_LIVES = 2

Say = Callable[[str], None]


class Run:
    """The jobs that are to be done now."""

    def __init__(self, jobs: Jobs, results: Results, pending: Sequence[Line], say: Say) -> None:
        """`say` is told in a line what goes on, from any thread."""
        #: How many jobs came to which end.
        self.counts: Counter[str] = Counter()
        #: It was told to end before all was done.
        self.interrupted = False
        self._jobs, self._results, self._say = jobs, results, say
        self._total = len(pending)
        self._waiting = deque(pending)
        self._workers: Sequence[JobWorker] = ()
        self._lock = threading.Lock()
        self._troubles: list[BaseException] = []

    @property
    def left(self) -> int:
        """Jobs without a result."""
        return self._total - self.counts.total()

    def through(self, workers: Sequence[JobWorker]) -> None:
        """Do the jobs; return when all are done, or those at work are after `drain`.

        A worker that cannot go on leaves its jobs to the others. Raises its error if jobs are left for that reason, and
        at once what is no job's and no worker's fault: a full disk, a bug.
        """
        self._workers = workers
        threads = [threading.Thread(target=self._serve, args=(worker,), daemon=True) for worker in workers]
        for thread in threads:
            thread.start()
        for thread in threads:
            # In pieces: Python takes a signal between two of them.
            while thread.is_alive():
                thread.join(0.2)
        for trouble in self._troubles:
            if not isinstance(trouble, EngineError) or (self.left and not self.interrupted):
                raise trouble

    def drain(self) -> None:
        """Begin no more jobs."""
        self.interrupted = True

    def stop(self) -> None:
        """End the jobs at work at their next check; nothing is kept of them."""
        self.drain()
        for worker in self._workers:
            worker.stop()

    def _serve(self, worker: JobWorker) -> None:
        try:
            try:
                _start(worker)
                while (line := self._next()) is not None:
                    self._do(worker, line)
            finally:
                worker.close()
        except Cancelled:
            # As it was told to.
            pass
        except EngineError as error:
            self._troubles.append(error)
            self._say(f"a worker cannot go on: {error}")
        except BaseException as error:  # noqa: BLE001 - raised in the main thread
            self._troubles.append(error)
            self.stop()

    def _next(self) -> Line | None:
        with self._lock:
            return self._waiting.popleft() if self._waiting and not self.interrupted else None

    def _do(self, worker: JobWorker, line: Line) -> None:
        began = time.monotonic()
        try:
            job = self._jobs.job(line)
        except RequestError as error:
            found: Mapping[str, Any] | None = error_answer(error)
        else:
            found = self._answer(worker, line, job)
        if found is None:
            return
        answer = dict(found)
        replace = answer.pop("refresh_worker", False)
        took = time.monotonic() - began
        self._tell(line, self._results.add(line, answer, took), answer, took)
        if replace:
            worker.close()
            _start(worker)

    def _answer(self, worker: JobWorker, line: Line, job: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """Return a job's answer; None where it was ended before it had one."""
        self._results.begin(line)
        self._say(f"{line.id}: begins (line {line.number})")
        for _ in range(_LIVES):
            try:
                answer = worker.work(job, _tenths(lambda text: self._say(f"{line.id}: {text}")))
                return None if answer.get("error_code") == "worker_stopped" else answer
            except WorkerLost as error:
                lost = error
            self._results.lost(line)
            if self.interrupted:
                return None
            self._say(f"{line.id}: {lost}")
            try:
                worker.close()
                _start(worker)
            except BaseException:
                # For another worker, if there is one.
                self._waiting.appendleft(line)
                raise
        return error_answer(lost)

    def _tell(self, line: Line, status: str, answer: Mapping[str, Any], took: float) -> None:
        with self._lock:
            self.counts[status] += 1
            count = self.counts.total()
        about = f" ({answer['error_code']}): {answer['error']}" if status == "failed" else ""
        self._say(f"{line.id}: {status} after {took:.1f} s, {count} of {self._total}{about}")


@contextmanager
def interruptible(run: Run, grace: float, say: Say) -> Iterator[None]:
    """Let the first interrupt (Ctrl-C, SIGTERM) begin no more jobs and end those at work after `grace` seconds.

    The second one ends them at their next check, a third one at once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    timer = threading.Timer(grace, run.stop)
    timer.daemon = True
    asked = 0

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked += 1
        if asked == 1:
            run.drain()
            timer.start()
            say(f"told to end: jobs at work have {grace:g} s")
        elif asked == 2:
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


def _start(worker: JobWorker) -> None:
    try:
        worker.start()
    except WorkerLost:
        # Once is chance.
        worker.close()
        worker.start()


def _tenths(write: Say) -> Callable[[Mapping[str, Any]], None]:
    """Return what writes a line of a job's progress whenever another tenth of it is done."""
    told = 0

    def tell(progress: Mapping[str, Any]) -> None:
        nonlocal told
        if (tenth := progress["percent"] // 10) > told:
            told = tenth
            left = progress["seconds_left"]
            more = "" if left is None else f", {left // 60}:{left % 60:02d} left"
            write(f"{progress['percent']:3d}%  {progress['stage']}{more}")

    return tell
