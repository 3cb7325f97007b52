"""The worker processes of an endpoint: starts, watches, replaces and stops them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.errors import ConfigError
from engine.files.scratch import Scratch
from engine.serving.endpoint.limits import EndpointLimits

_LOG = logging.getLogger(__name__)
#: Longest pause in seconds before the next start, after several workers that never asked for a job.
_PAUSE = 30.0


@dataclass
class WorkerProcess:
    """One process, with its own process group, so that its child processes end with it."""

    id: str
    process: asyncio.subprocess.Process
    #: Folder of its temporary files, removed when it ends, like a container's disk.
    disk: Path
    started: float
    #: It has asked for a job.
    ready: bool = False
    #: It gets no more jobs and must end.
    retired: bool = False
    #: It was killed, but its process has not ended yet.
    killed: bool = False
    #: The problem that it reported before it ended.
    problem: str = ""


class WorkerPool:
    """Keeps the configured number of workers running."""

    def __init__(
        self,
        command: Sequence[str],
        environment: Callable[[str], Mapping[str, str]],
        count: int,
        limits: EndpointLimits,
        on_exit: Callable[[str, str], None],
        *,
        mark: str,
    ) -> None:
        """`environment` returns a worker's variables for its id; each contains the text `mark`.

        `on_exit` is called with the id of each worker that ended, and the reason.
        """
        self.workers: dict[str, WorkerProcess] = {}
        #: Number of slots whose last worker ended before it asked for a job.
        self.unhealthy = 0
        self._command = list(command)
        self._environment = environment
        self._count = count
        self._limits = limits
        self._on_exit = on_exit
        self._mark = mark
        self._stopping = asyncio.Event()
        self._slots: list[asyncio.Task[None]] = []
        self._reaper: subprocess.Popen[str] | None = None
        self._scratch: Scratch | None = None
        self._disks: Path | None = None
        #: Folder of the videos that the workers publish while they make them; set by `start`.
        self.live: Path | None = None

    async def start(self) -> None:
        """Start all workers. Raises ConfigError if the command does not exist."""
        if not self._command or shutil.which(self._command[0]) is None:
            name = self._command[0] if self._command else ""
            raise ConfigError(
                f"there is no command {name!r} to start a worker with",
                field="entrypoint.worker",
                hint="leave it out for `multitalk runpod`",
            )
        script = Path(__file__).with_name("reaper.py")
        self._reaper = subprocess.Popen(
            [sys.executable, "-I", "-S", str(script)], stdin=subprocess.PIPE, text=True, start_new_session=True
        )
        self._scratch = Scratch("endpoint-")
        self._disks = self._scratch.path
        self.live = self._disks / "live"
        self.live.mkdir(mode=0o700)
        self._write_to_reaper(self._mark)
        self._write_to_reaper(str(self._disks))
        self._slots = [asyncio.create_task(self._keep_running()) for _ in range(self._count)]

    async def stop(self) -> None:
        """Stop all workers: ask them to end, and kill them after the grace period."""
        self._stopping.set()
        for worker in list(self.workers.values()):
            self.retire(worker.id)
        try:
            await asyncio.gather(*self._slots)
        finally:
            for worker in list(self.workers.values()):
                _kill(worker)
            if self._reaper is not None and self._reaper.stdin is not None:
                self._write_to_reaper("done")
                with contextlib.suppress(BrokenPipeError):
                    self._reaper.stdin.close()
                self._reaper.wait()
            if self._scratch is not None:
                self._scratch.close()

    def note_poll(self, worker_id: str) -> WorkerProcess | None:
        """Note that a worker asks for a job; return the worker if it may get one."""
        worker = self.workers.get(worker_id)
        if worker is None or worker.retired:
            return None
        worker.ready = True
        return worker

    def retire(self, worker_id: str) -> None:
        """Ask a worker to end with SIGTERM, as the platform does; another one replaces it."""
        worker = self.workers.get(worker_id)
        if worker is None or worker.retired:
            return
        worker.retired = True
        with contextlib.suppress(ProcessLookupError):
            worker.process.terminate()
        asyncio.get_running_loop().call_later(self._limits.grace, self._kill_if_there, worker)

    def kill(self, worker_id: str, why: str = "") -> None:
        """Kill a worker and its child processes; another one replaces it. `why` is logged once."""
        worker = self.workers.get(worker_id)
        if worker is None or worker.killed:
            return
        worker.retired = worker.killed = True
        if why:
            _LOG.warning("worker %s %s and is killed", worker.id, why)
        _kill(worker)

    def tick(self) -> None:
        """Kill workers that start too slowly."""
        now = time.monotonic()
        for worker in list(self.workers.values()):
            if not worker.ready and not worker.retired and now - worker.started >= self._limits.start_timeout:
                self._kill_slow(worker)

    def numbers(self, busy: Callable[[str], bool]) -> dict[str, int]:
        """Return the counts of workers for /health."""
        workers = [worker for worker in self.workers.values() if not worker.retired]
        ready = [worker for worker in workers if worker.ready]
        running = sum(busy(worker.id) for worker in ready)
        return {
            "idle": len(ready) - running,
            "initializing": len(workers) - len(ready),
            "ready": len(ready),
            "running": running,
            "throttled": 0,
            "unhealthy": self.unhealthy,
        }

    async def _keep_running(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            try:
                worker = await self._spawn()
            except OSError as error:
                failures += 1
                await self._pause(failures, f"cannot start a worker: {error.strerror or error}")
                continue
            status = await worker.process.wait()
            # Its heartbeat is a separate process and survives a worker that was killed.
            _kill(worker)
            del self.workers[worker.id]
            why = f"the worker's process ended ({_describe_exit(status)})"
            self._on_exit(worker.id, why)
            await asyncio.to_thread(shutil.rmtree, worker.disk, ignore_errors=True)
            if worker.ready or worker.retired:
                failures = 0
                continue
            failures += 1
            about = f": {worker.problem}" if worker.problem else ""
            await self._pause(failures, f"{why} before it asked for a job{about}")

    async def _pause(self, failures: int, why: str) -> None:
        seconds = min(_PAUSE, 2.0 ** (failures - 1))
        _LOG.warning("%s; the next try is in %g s", why, seconds)
        self.unhealthy += 1
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)
        self.unhealthy -= 1

    async def _spawn(self) -> WorkerProcess:
        worker_id = secrets.token_hex(7)
        assert self._disks is not None
        disk = self._disks / worker_id
        disk.mkdir(mode=0o700)
        process = await asyncio.create_subprocess_exec(
            *self._command,
            env={**os.environ, "TMPDIR": str(disk), **self._environment(worker_id)},
            stdin=asyncio.subprocess.DEVNULL,
            # What workers print goes to the log, because stdout belongs to the entrypoint.
            stdout=2,
            start_new_session=True,
        )
        worker = WorkerProcess(worker_id, process, disk, time.monotonic())
        self.workers[worker_id] = worker
        if self._stopping.is_set():
            self.retire(worker_id)
        return worker

    def _kill_if_there(self, worker: WorkerProcess) -> None:
        self.kill(worker.id, f"did not end within {self._limits.grace:g} s")

    def _kill_slow(self, worker: WorkerProcess) -> None:
        if worker.killed:
            return
        # Not retired: a worker that was never ready counts as failed.
        worker.killed = True
        _LOG.warning("worker %s asked for no job within %g s and is killed", worker.id, self._limits.start_timeout)
        _kill(worker)

    def _write_to_reaper(self, line: str) -> None:
        if self._reaper is not None and self._reaper.stdin is not None:
            # A reaper that is gone can no longer end workers; this process still can.
            with contextlib.suppress(BrokenPipeError):
                self._reaper.stdin.write(f"{line}\n")
                self._reaper.stdin.flush()


def _kill(worker: WorkerProcess) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(worker.process.pid, signal.SIGKILL)


def _describe_exit(status: int) -> str:
    return f"status {status}" if status >= 0 else f"signal {signal.Signals(-status).name}"
