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

from engine.components import JobWorker
from engine.errors import Cancelled, EngineError, RequestError, WorkerLost
from engine.serving.batch.jobs import Jobs, Line
from engine.serving.batch.results import Results
from engine.serving.jobs.answers import error_answer

#: Processes that a job may take down with it before it counts as failed.
_LIVES = 2

Say = Callable[[str], None]


class Run:
    """The jobs that are to be done now."""

    def __init__(self, jobs: Jobs, results: Results, pending: Sequence[Line], say: Say, warn: Say) -> None:
        """`say` and `warn` are told in a line what goes on, and what goes wrong with workers, from any thread."""
        #: How many jobs came to which end.
        self.counts: Counter[str] = Counter()
        #: How many failed with which code.
        self.codes: Counter[str] = Counter()
        self._began = time.monotonic()
        #: It was told to end before all was done.
        self.interrupted = False
        self._jobs, self._results, self._say, self._warn = jobs, results, say, warn
        self._total = len(pending)
        self._waiting = deque(pending)
        self._deaths: Counter[str] = Counter()
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
                fresh = False
                while (line := self._next()) is not None:
                    fresh = self._do(worker, line, fresh=fresh)
            finally:
                worker.close()
        except Cancelled:
            # As it was told to.
            pass
        except EngineError as error:
            self._troubles.append(error)
            self._warn(f"a worker cannot go on: {error}")
        except BaseException as error:  # noqa: BLE001 - raised in the main thread
            self._troubles.append(error)
            self.stop()

    def _next(self) -> Line | None:
        with self._lock:
            return self._waiting.popleft() if self._waiting and not self.interrupted else None

    def _do(self, worker: JobWorker, line: Line, *, fresh: bool) -> bool:
        """Do a job with a worker that is as good as new if it is `fresh`; say whether it still is."""
        began = time.monotonic()
        try:
            job = self._jobs.job(line)
        except RequestError as error:
            self._keep(line, error_answer(error, own=True), began)
            return fresh
        if not fresh:
            try:
                _renew(worker)
            except BaseException:
                # Not the job's fault: another worker may do it.
                self._waiting.appendleft(line)
                raise
            if self.interrupted:
                # A start may take minutes.
                self._waiting.appendleft(line)
                return True
        self._results.begin(line)
        self._say(f"{line.id}: begins (line {line.number})")
        try:
            answer = dict(worker.work(job, _tenths(lambda text: self._say(f"{line.id}: {text}"))))
        except WorkerLost as error:
            self._lose(line, error, began)
            return False
        if answer.get("error_code") == "worker_stopped":
            # It has not failed: the next start does it.
            self._results.withdraw(line)
            return False
        fresh = not answer.pop("refresh_worker", False)
        self._keep(line, answer, began)
        return fresh

    def _lose(self, line: Line, error: WorkerLost, began: float) -> None:
        """Let the job be done again; it has failed if it was the second process that ended with it."""
        self._warn(f"{line.id}: {error}")
        self._results.withdraw(line)
        self._deaths[line.id] += 1
        if self._deaths[line.id] < _LIVES or self.interrupted:
            self._waiting.appendleft(line)
        else:
            self._keep(line, error_answer(error, own=True), began)

    def _keep(self, line: Line, answer: Mapping[str, Any], began: float) -> None:
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
        """Say how long the rest takes if it goes on as it went; nothing where nothing is left."""
        if count >= self._total:
            return ""
        minutes, seconds = divmod(round((time.monotonic() - self._began) / count * (self._total - count)), 60)
        return f", about {minutes}:{seconds:02d} left"


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


def _renew(worker: JobWorker) -> None:
    """Start a worker, in the place of the process before if there was one."""
    worker.close()
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
