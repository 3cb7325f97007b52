"""Run the parts in a separate process and keep their results even if it fails. Imports no torch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from multiprocessing import Pipe
from pathlib import Path
from types import FrameType
from typing import Any

from engine.bench.device.parts import GRACE, PARTS, BenchPart
from engine.bench.device.shares import derive
from engine.bench.device.shares import keep as keep_shares
from engine.errors import ConfigError
from engine.files.atomic import write
from engine.planning.rates import folder

#: Most seconds in which a new process must import torch and open its device.
_START = 180.0

Message = dict[str, Any]


class _Ended(Exception):
    """The measuring process has ended."""


class _Stopped(Exception):
    """This process was stopped by a signal."""


def run(
    device: str = "auto",
    runs: int = 5,
    seconds: int = 600,
    output: str = "",
    parts: str = "",
    reduced: bool = False,
    keep: bool = False,
) -> dict[str, Any]:
    """Measure `device`, "auto", "cuda" or "cpu", on random weights, without network and without files of a model.

    A CPU, or `reduced`, gets small sizes, and the report says so. Figures are medians of at most `runs` runs. `parts`
    are names of PARTS with commas between them; without them all run. After `seconds` the report is returned as it is:
    parts that would not fit are skipped. A part that fails, hangs or takes its process with it does not stop the
    others. `output` is a file that holds the report from the beginning and is replaced after each row. With `keep` the
    measured shares of the card's data sheet become those of plans (engine/planning/rates.py). Raises ConfigError.
    """
    names = [name.strip() for name in parts.split(",") if name.strip()]
    parts_by_name = {part.name: part for part in PARTS}
    for name in names:
        if name not in parts_by_name:
            raise ConfigError(f"no part named {name!r}", field="bench device --parts", hint=", ".join(parts_by_name))
    selected = [parts_by_name[name] for name in names] or list(PARTS)
    settings = {"device": device, "runs": runs, "reduced": reduced}
    if keep and (reduced or device == "cpu"):
        what = "reduced sizes say nothing about a card"
        raise ConfigError(what, field="bench device --keep", hint="run it on a card")
    report = measure(selected, settings, seconds=seconds, output=Path(output) if output else None)
    if keep:
        _say(_keep(report))
    return report


def _keep(report: Message) -> str:
    try:
        return f"kept in {keep_shares(report, folder())}"
    except ConfigError as error:
        # The report is worth more than its shares.
        return f"not kept: {error}"


def measure(parts: Sequence[BenchPart], settings: Mapping[str, Any], *, seconds: float, output: Path | None) -> Message:
    """Measure `parts` in their order; see `run`. `settings` are the arguments of Bench. Raises ConfigError."""
    report = _Report(parts, seconds, output)
    worker: _Worker | None = None
    try:
        with _stoppable():
            worker = _Worker(settings)
            report.about(worker.begin(report.seconds_left()))
            for part in parts:
                if (left := report.seconds_left()) < part.budget:
                    why = f"its {part.budget:.0f} s do not fit into the {max(0.0, left):.0f} s that are left"
                    report.end(part, {"state": "skipped", "why": why})
                    continue
                try:
                    if worker is None:
                        worker = _Worker(settings)
                        worker.begin(report.seconds_left())
                    _follow(report, worker, part)
                except _Ended as ended:
                    report.end(part, {"state": "failed", "why": str(ended)})
                    if worker is not None:
                        worker.close()
                    worker = None
    except _Stopped as stopped:
        report.stop(str(stopped))
    finally:
        if worker is not None:
            worker.close()
    return report.finish()


def _follow(report: _Report, worker: _Worker, part: BenchPart) -> None:
    """Measure `part` in the process. Raises _Ended if the process cannot be used any more."""
    limit = min(part.budget + GRACE, report.seconds_left())
    report.begin(part)
    worker.ask(part)
    until = time.monotonic() + limit
    while True:
        message = worker.receive(until - time.monotonic(), f"ended after {limit:.0f} s: it did not return")
        if "end" in message:
            report.end(part, message["end"])
            return
        report.row(part, message["row"], message["figures"])


# --- the process that measures ----------------------------------------------------------------------------------------


class _Worker:
    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._pipe, other = Pipe()
        handle = other.fileno()
        command = [sys.executable, "-m", "engine.bench.device.worker", json.dumps(dict(settings)), str(handle)]
        # A separate session, so that its children end with it; output of libraries must not enter the report.
        self._process = subprocess.Popen(
            command,
            pass_fds=(handle,),
            stdin=subprocess.DEVNULL,
            stdout=2,
            start_new_session=True,
            # The profiler's own messages would appear between the lines of progress.
            env={"KINETO_LOG_LEVEL": "99"} | os.environ,
        )
        other.close()

    def begin(self, seconds: float) -> Message:
        """Start the process and return its device's data. Raises ConfigError if it refuses, and _Ended."""
        hello = self.receive(min(_START, seconds), "the process did not start in time")
        if "refused" in hello:
            what, field, hint = hello["refused"]
            raise ConfigError(what, field=field, hint=hint)
        return hello

    def ask(self, part: BenchPart) -> None:
        with _worker_ended(self._process):
            self._pipe.send_bytes(json.dumps({"place": part.place, "budget": part.budget}).encode())

    def receive(self, seconds: float, timeout_message: str) -> Message:
        """Return the next message. Raises _Ended if none arrives in time, or if the process has ended."""
        with _worker_ended(self._process):
            if not self._pipe.poll(max(0.0, seconds)):
                raise _Ended(timeout_message)
            message: Message = json.loads(self._pipe.recv_bytes())
            return message

    def close(self) -> None:
        self._pipe.close()
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


@contextmanager
def _worker_ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    except (EOFError, OSError) as error:
        status = process.wait()
        how = f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
        raise _Ended(f"the process that measures ended {how}") from error


@contextmanager
def _stoppable() -> Iterator[None]:
    """Raise _Stopped inside the block when the process is asked to stop, so that results are not lost."""

    def stop(number: int, _frame: FrameType | None) -> None:
        raise _Stopped(signal.Signals(number).name)

    if threading.current_thread() is not threading.main_thread():
        # Python lets only the main thread handle signals.
        yield
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# --- the report -------------------------------------------------------------------------------------------------------


class _Report:
    def __init__(self, parts: Sequence[BenchPart], seconds: float, output: Path | None) -> None:
        self._began = self._part_began = time.monotonic()
        self._seconds, self._output = seconds, output
        self._parts: dict[str, Message] = {
            part.name: {"state": "not reached", "budget": part.budget, "rows": {}} for part in parts
        }
        self._report: Message = {
            "bench": "device",
            "state": "running",
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "limit": seconds,
        }
        self._write()

    def seconds_left(self) -> float:
        return self._seconds - (time.monotonic() - self._began)

    def about(self, hello: Message) -> None:
        self._report |= hello
        self._write()

    def begin(self, part: BenchPart) -> None:
        self._part_began = time.monotonic()
        self._parts[part.name]["state"] = "running"
        self._write()
        _say(f"{part.name}, at most {part.budget:.0f} s; {self.seconds_left():.0f} s are left")

    def row(self, part: BenchPart, name: str, figures: Message) -> None:
        self._parts[part.name]["rows"][name] = figures
        self._write()
        _say(f"{part.name}: {name}: {_short(figures)}")

    def end(self, part: BenchPart, end: Message) -> None:
        mine = self._parts[part.name]
        rows = mine["rows"].values()
        failed = [row for row in rows if "failed" in row]
        if end["state"] == "done" and failed and len(failed) == len(rows):
            end = {"state": "failed", "why": "every row failed"} | end | {"state": "failed"}
        mine |= end
        if mine["state"] != "skipped":
            mine["seconds"] = time.monotonic() - self._part_began
        self._write()
        _say(f"{part.name}: {mine['state']}{': ' + mine['why'] if 'why' in mine else ''}")

    def stop(self, why: str) -> None:
        for part in self._parts.values():
            if part["state"] in ("running", "not reached"):
                part |= {"state": "failed" if part["state"] == "running" else "skipped", "why": f"stopped by {why}"}
        self._report["state"] = f"stopped by {why}"

    def finish(self) -> Message:
        if self._report["state"] == "running":
            self._report["state"] = "complete"
        self._report["seconds"] = time.monotonic() - self._began
        self._write()
        return self._whole()

    def _whole(self) -> Message:
        report = self._report | {"parts": self._parts}
        failed = [name for name, part in self._parts.items() if part["state"] == "failed"]
        rows = [
            f"{name}: {row}"
            for name, part in self._parts.items()
            for row, figures in part["rows"].items()
            if "failed" in figures
        ]
        return report | {"failed": failed + rows, "shares": derive(report)}

    def _write(self) -> None:
        if self._output is None:
            return
        path = self._output.absolute()
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, (json.dumps(self._whole(), indent=1) + "\n").encode())


def _short(figures: Message) -> str:
    for key in ("failed", "skipped"):
        if key in figures:
            return f"{key}: {figures[key]}"
    return ", ".join(f"{key} {value:.4g}" for key, value in figures.items() if isinstance(value, float)) or "done"


def _say(line: str) -> None:
    print(f"bench device: {line}", file=sys.stderr, flush=True)
