"""`launcher=local`: one process per device on this machine."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from omegaconf import II

from engine import hookimpl
from engine.components import JobWorker, Launcher
from engine.config import ComponentConfig, within
from engine.errors import Cancelled, ConfigError, EngineError, WorkerLost
from engine.files.scratch import scratch
from engine.plugin.register import Register

#: Seconds that a process has to end before it is killed.
_PATIENCE = 10.0


@dataclass
class LocalConfig(ComponentConfig):
    """Workers on this machine: one process per CUDA device, or one on the CPU."""

    name: str = "local"
    #: Number of processes; null: one per device.
    workers: int | None = field(default=None, metadata=within(1, 1000))
    #: As `device`.
    device: str = II("device")


class Local:
    """Starts worker processes on this machine."""

    def __init__(self, config: LocalConfig) -> None:
        """Raise ConfigError if the number of workers is out of range."""
        if config.workers is not None and config.workers < 1:
            raise ConfigError(f"{config.workers} workers", field="launcher.workers", hint="give 1 or more")
        self.config = config

    @contextmanager
    def launch(self, make: Callable[[], JobWorker], most: int) -> Iterator[Sequence[JobWorker]]:
        """See `components.Launcher`."""
        devices = _cuda_devices() if self.config.device != "cpu" else []
        count = min(most, self.config.workers or len(devices) or 1)
        # The temporary files of a process that is killed are removed with the folder.
        with scratch("batch-") as folder:
            places = [_environment(number, count, devices) | {"TMPDIR": str(folder)} for number in range(count)]
            workers = [_WorkerProxy(make, place) for place in places]
            try:
                yield workers
            finally:
                for worker in workers:
                    worker.close()


def _cuda_devices() -> list[str]:
    """Return torch's CUDA devices, named as in CUDA_VISIBLE_DEVICES."""
    import torch

    count = torch.cuda.device_count()
    devices = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return devices[:count] if devices else [str(number) for number in range(count)]


def _environment(number: int, count: int, devices: Sequence[str]) -> dict[str, str]:
    if devices:
        return {"CUDA_VISIBLE_DEVICES": devices[number % len(devices)]}
    if count > 1 and "OMP_NUM_THREADS" not in os.environ:
        # If each process used all cores, they would slow each other down.
        return {"OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // count))}
    return {}


class _WorkerProxy:
    """Proxy of a worker in another process; calls and answers go through a pipe."""

    def __init__(self, make: Callable[[], JobWorker], environment: Mapping[str, str]) -> None:
        self._make, self._environment = make, environment
        self._process: multiprocessing.process.BaseProcess | None = None
        self._pipe: Connection | None = None
        self._sending = threading.Lock()
        self._stopped = False

    def start(self) -> None:
        if self._stopped:
            raise Cancelled
        # Not forked: CUDA and threads do not survive it.
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._make, self._environment))
        self._process.start()
        theirs.close()
        self._ask(("start",), lambda _: None)

    def work(self, job: Mapping[str, Any], tell: Callable[[Mapping[str, Any]], None]) -> Mapping[str, Any]:
        answer: Mapping[str, Any] = self._ask(("work", job), tell)
        return answer

    def stop(self) -> None:
        self._stopped = True
        self._send("stop")

    def close(self) -> None:
        # Local references, because two threads may close it at the same time.
        process, pipe = self._process, self._pipe
        if process is None or pipe is None:
            return
        self._send("end")
        process.join(_PATIENCE)
        if process.is_alive():
            process.kill()
            process.join()
        pipe.close()
        self._process = self._pipe = None

    def _send(self, message: object) -> None:
        # Errors are ignored if the process has ended: the thread that waits for its answer notices.
        with self._sending, suppress(OSError):
            if self._pipe is not None:
                self._pipe.send(message)

    def _ask(self, call: tuple[object, ...], tell: Callable[[Mapping[str, Any]], None]) -> Any:
        pipe, process = self._pipe, self._process
        assert pipe is not None
        assert process is not None
        self._send(call)
        while True:
            try:
                kind, value = pipe.recv()
            except (EOFError, OSError):
                process.join(_PATIENCE)
                raise WorkerLost(_describe_exit(process.exitcode)) from None
            if kind == "raised":
                raise value
            if kind == "returned":
                return value
            tell(value)


def _describe_exit(status: int | None) -> str:
    if status is None:
        return "it no longer answers"
    return f"status {status}" if status >= 0 else f"signal {signal.Signals(-status).name}"


# --- in the process ---------------------------------------------------------------------------------------------------


def _serve(pipe: Connection, make: Callable[[], JobWorker], environment: Mapping[str, str]) -> None:
    """Serve calls from the pipe until "end" arrives, or until the pipe closes because the other process ended."""
    # Before torch is imported.
    os.environ.update(environment)
    for number in (signal.SIGINT, signal.SIGTERM):
        # A terminal sends them to all processes, but the parent process decides when to stop.
        signal.signal(number, signal.SIG_IGN)
    calls: queue.SimpleQueue[tuple[Any, ...] | None] = queue.SimpleQueue()
    try:
        worker = make()
        threading.Thread(target=_listen, args=(pipe, worker, calls), daemon=True).start()
        while (call := calls.get()) is not None:
            pipe.send(_done(worker, call, pipe))
        worker.close()
    except EngineError as error:
        # Raised by `make`; sent as the answer to the first call.
        pipe.send(("raised", error))
    except BrokenPipeError:
        pass


def _done(worker: JobWorker, call: tuple[Any, ...], pipe: Connection) -> tuple[str, object]:
    name, *arguments = call
    try:
        if name == "start":
            worker.start()
            return "returned", None
        return "returned", worker.work(arguments[0], lambda progress: pipe.send(("progress", progress)))
    except EngineError as error:
        return "raised", error


def _listen(pipe: Connection, worker: JobWorker, calls: queue.SimpleQueue[tuple[Any, ...] | None]) -> None:
    while True:
        try:
            message = pipe.recv()
        except (EOFError, OSError):
            message = "end"
        if isinstance(message, tuple):
            calls.put(message)
            continue
        worker.stop()
        if message == "end":
            calls.put(None)
            return


@hookimpl
def register_launchers(register: Register[Launcher]) -> None:
    """Offer `launcher=local`."""
    register(Local, LocalConfig)
