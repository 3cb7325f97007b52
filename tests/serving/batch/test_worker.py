"""The engine of a batch's process answers jobs as a RunPod worker does."""

from __future__ import annotations

import logging
import pickle
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from worker_fakes import GOOD, FakeService, OutOfMemoryError, steps, until_cancelled

from engine.errors import Cancelled, EngineError, MissingExtra, SinkError, SourceError, UnknownComponent, WorkerLost
from engine.serving.batch.worker import EngineWorker
from engine.serving.worker.handler import Terms

JOB = {"id": "job-1", "input": GOOD}


@pytest.fixture(autouse=True)
def log() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)


def nothing(_: Mapping[str, Any]) -> None:
    """Take no note of progress."""


def test_it_loads_at_the_start_and_tells_progress() -> None:
    service = FakeService(steps)
    worker = EngineWorker(lambda: service, Terms())
    worker.start()
    assert service.loads == 1
    told: list[Mapping[str, Any]] = []
    answer = worker.work(JOB, told.append)
    assert answer["frames"] == 9
    assert told
    assert {*told[0]} >= {"percent", "stage", "seconds_left"}
    assert service.requests[0].job == "job-1"
    worker.close()
    assert service.closed == 1


def test_what_no_job_could_be_done_without_is_raised_at_the_start() -> None:
    service = FakeService()
    service.failure = SourceError("no weights", field="source", hint="get them")
    with pytest.raises(SourceError, match="source: no weights; get them"):
        EngineWorker(lambda: service, Terms()).start()

    service = FakeService()
    service.report = {"failed": {"sink": "sink.folder: it is full; make room"}}
    with pytest.raises(SinkError, match=r"^sink\.folder: it is full; make room$"):
        EngineWorker(lambda: service, Terms()).start()


def test_memory_that_is_full_at_the_start_is_for_the_first_job_to_mend() -> None:
    service = FakeService()
    service.failure = OutOfMemoryError("full")
    worker = EngineWorker(lambda: service, Terms())
    worker.start()
    assert "error" not in worker.work(JOB, nothing)


def test_memory_that_runs_out_lowers_the_profile_and_at_last_asks_for_a_new_process() -> None:
    def full(*_: Any) -> None:
        raise OutOfMemoryError("full")

    service = FakeService(full)
    answer = EngineWorker(lambda: service, Terms()).work(JOB, nothing)
    assert (answer["error_code"], answer["refresh_worker"]) == ("out_of_memory", True)
    assert service.opened == [(("memory=model-offload",), False)]


def test_a_bug_fails_its_job_alone() -> None:
    def bug(service: FakeService, *_: Any) -> None:
        if len(service.requests) == 1:
            raise KeyError("a bug")

    worker = EngineWorker(lambda: FakeService(bug), Terms())
    assert worker.work(JOB, nothing)["error_code"] == "internal_error"
    assert "error" not in worker.work(JOB, nothing)


def test_stopped_it_ends_its_job_and_loads_nothing() -> None:
    worker = EngineWorker(lambda: FakeService(until_cancelled), Terms())
    threading.Timer(0.1, worker.stop).start()
    assert worker.work(JOB, nothing)["error_code"] == "worker_stopped"
    assert worker.work(JOB, nothing)["error_code"] == "worker_stopped"

    service = FakeService()
    service.gate = threading.Event()
    worker = EngineWorker(lambda: service, Terms())
    worker.stop()
    with pytest.raises(Cancelled):
        worker.start()
    service.gate.set()


def test_errors_come_whole_through_a_pipe() -> None:
    for error in (
        SourceError("no weights", field="source", hint="get them", code="x"),
        UnknownComponent("sampler", "eulr", ["euler"]),
        MissingExtra("launcher=ray", "ray", "ray"),
        WorkerLost("signal SIGKILL"),
        Cancelled("load"),
    ):
        again = pickle.loads(pickle.dumps(error))
        assert isinstance(again, EngineError)
        assert type(again) is type(error)
        assert (str(again), again.code, vars(again)) == (str(error), error.code, vars(error))
