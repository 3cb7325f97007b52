"""Jobs, workers in real processes, and what becomes of both when one of them ends."""

from __future__ import annotations

import errno
import functools
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from batch_workers import WordWorker

from engine.components import Launcher
from engine.errors import ConfigError, SourceError, UnknownComponent, WorkerLost
from engine.plugin.manager import installed
from engine.serving.batch.jobs import JobFile
from engine.serving.batch.results import Results, open_results
from engine.serving.batch.run import BatchRun, interruptible


class Desk:
    """A folder with jobs, whose prompts are words for `WordWorker`, and what is said while they are done."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.said: list[str] = []
        self.warned: list[str] = []

    def do(self, words: Mapping[str, str], launcher: Launcher | None = None, *, grace: float = 20) -> BatchRun:
        """Do the jobs, and return when all that were begun have ended."""
        path = self.folder / "shots.jsonl"
        path.write_text(
            "".join(json.dumps({"id": id_, "input": {"prompt": word}}) + "\n" for id_, word in words.items())
        )
        jobs = JobFile(path, sink="disk", in_folder=True)
        make = functools.partial(WordWorker, self.folder)
        with open_results(self.results, self.folder) as results:
            pending = [line for line in jobs.lines if results.status(line) is None]
            run = BatchRun(jobs, results, pending, self.said.append, self.warned.append)
            with (
                (launcher or local()).launch(make, len(pending)) as workers,
                interruptible(run, grace, self.said.append),
            ):
                run.process(workers)
        return run

    @property
    def results(self) -> Path:
        return self.folder / "shots.results.jsonl"

    def records(self) -> dict[str, Any]:
        found = [json.loads(line) for line in self.results.read_text().splitlines()]
        assert len({record["id"] for record in found}) == len(found)
        return {record["id"]: record for record in found}

    def processes(self, name: str) -> list[int]:
        return [int(line) for line in (self.folder / name).read_text().split()]


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def local(**changes: Any) -> Launcher:
    launchers = installed().launchers
    return launchers.build(launchers.config("local")(**{"device": "cpu", "workers": None} | changes))


def wait(ready: Callable[[], bool]) -> None:
    while not ready():
        time.sleep(0.02)


def interrupt(desk: Desk, ready: Callable[[], bool], number: signal.Signals, *, times: int = 1) -> None:
    """Send this process a signal once something is so; the batch must go on until it has got the last one."""

    def send() -> None:
        wait(ready)
        for _ in range(times):
            os.kill(os.getpid(), number)
            # Two that wait to be taken are one.
            wait(lambda: any(line.startswith("stopping") for line in desk.said))

    threading.Thread(target=send, daemon=True).start()


def gone(process: int) -> bool:
    return not Path(f"/proc/{process}").exists()


def test_two_processes_take_from_one_queue(desk: Desk) -> None:
    words = {"a": "wait mark", "b": "film", "c": "film", "d": "film"}
    # The first is busy until the second has done the rest, which may be before the first one's process has started.
    interrupt(desk, lambda: (desk.folder / "mark").exists() and len(desk.records()) == 3, signal.SIGINT, times=2)
    run = desk.do(words, local(workers=2))
    assert (run.counts["done"], run.left) == (3, 1)
    outputs = [record["output"] for record in desk.records().values()]
    assert len({output["process"] for output in outputs}) == 1
    assert len(desk.processes("starts")) == 2
    assert outputs[0]["threads"] == str(max(1, len(os.sched_getaffinity(0)) // 2)) or "OMP_NUM_THREADS" in os.environ
    assert all(gone(process) for process in desk.processes("starts"))


def test_a_process_that_dies_loses_its_job_once(desk: Desk) -> None:
    run = desk.do({"a": "die-once mark", "b": "film"})
    assert run.counts == {"done": 2}
    assert desk.warned == ["a: the worker process ended (signal SIGKILL); did the machine run out of memory?"]
    assert (desk.folder / "a.mp4").read_text() == "die-once"
    assert len(desk.processes("starts")) == 2


def test_a_job_that_takes_two_processes_down_has_failed_and_the_others_go_on(desk: Desk) -> None:
    run = desk.do({"a": "die", "b": "film"})
    assert run.counts == {"failed": 1, "done": 1}
    record = desk.records()["a"]
    assert (record["status"], record["error_code"]) == ("failed", "worker_died")
    assert "signal SIGKILL" in record["error"]
    # What it left behind would be taken for its video.
    assert not (desk.folder / "a.mp4").exists()
    assert not Path((desk.folder / "temporary").read_text()).exists()
    assert len(desk.processes("starts")) == 3


def test_a_worker_that_asks_for_it_is_replaced(desk: Desk) -> None:
    desk.do({"a": "refresh", "b": "film", "c": "refresh"})
    assert "refresh_worker" not in desk.records()["a"]
    # Not after the last job.
    assert len(desk.processes("starts")) == 2
    assert desk.processes("ends")[:2] == desk.processes("starts")


def test_an_error_that_concerns_all_jobs_is_no_jobs_own(desk: Desk) -> None:
    (desk.folder / "no-weights").touch()
    with pytest.raises(SourceError, match="source: no weights; get them"):
        desk.do({"a": "film", "b": "film"}, local(workers=2))
    assert desk.records() == {}


def test_processes_that_die_while_they_start_end_the_batch(desk: Desk) -> None:
    (desk.folder / "no-memory").touch()
    with pytest.raises(WorkerLost, match="signal SIGKILL"):
        desk.do({"a": "film"})
    assert desk.records() == {}
    assert len(desk.processes("starts")) == 2


def test_results_that_cannot_be_kept_end_the_batch(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Results, "add", full)
    with pytest.raises(OSError, match="No space left"):
        desk.do({"a": "film", "b": "wait reached"}, local(workers=2))
    assert all(gone(process) for process in desk.processes("starts"))


def full(*_: object) -> str:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_told_to_end_it_finishes_or_cancels_and_the_next_start_does_the_rest(
    desk: Desk, number: signal.Signals
) -> None:
    words = {"a": "film", "b": "wait reached", "c": "film"}
    interrupt(desk, (desk.folder / "reached").exists, number)
    before = signal.getsignal(number)
    run = desk.do(words, grace=0.2)
    assert run.interrupted
    assert signal.getsignal(number) is before
    assert list(desk.records()) == ["a"]
    assert not (desk.folder / "b.mp4").exists()
    assert all(gone(process) for process in desk.processes("starts"))
    assert not list(desk.folder.glob(".shots*"))

    again = desk.do(words | {"b": "film"})
    assert again.counts == {"done": 2}


def release(desk: Desk) -> None:
    wait(lambda: bool(desk.said))
    (desk.folder / "slow").unlink()


@pytest.mark.parametrize("times", [1, 2])
def test_told_to_end_while_a_worker_starts_it_begins_nothing(desk: Desk, times: int) -> None:
    (desk.folder / "slow").touch()
    interrupt(desk, (desk.folder / "starting").exists, signal.SIGINT, times=times)
    if times == 1:
        # The start ends by itself, once the batch knows that nothing is to come after it.
        threading.Thread(target=release, args=(desk,), daemon=True).start()
    run = desk.do({"a": "film"})
    assert (run.interrupted, run.left) == (True, 1)
    assert not desk.results.read_text()
    assert not (desk.folder / "a.mp4").exists()


def test_each_device_has_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch, desk: Desk) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-5, GPU-7")
    desk.do({"a": "film", "b": "film", "c": "film"}, local(device="auto"))
    assert len(desk.processes("starts")) == 2
    assert {record["output"]["device"] for record in desk.records().values()} <= {"GPU-5", "GPU-7"}


@pytest.mark.parametrize("workers", [0, -1])
def test_a_number_of_workers_that_cannot_be_meant_is_refused(workers: int) -> None:
    with pytest.raises(ConfigError, match=r"^launcher\.workers: "):
        local(workers=workers)


def test_an_unknown_launcher_lists_those_installed() -> None:
    with pytest.raises(UnknownComponent, match=r"launcher: no launcher named 'slurm'; installed: local, ray"):
        installed().launchers.config("slurm")
