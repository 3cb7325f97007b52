"""A job comes, an answer goes: what the worker does with each action, with what goes wrong, and with a cancellation."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import threading
import time

import pytest
from worker_fakes import GOOD, PLAN, STORE, FakeService, Sent, ask, steps, until_cancelled, worker

from engine.components import Service
from engine.data import Resumed
from engine.errors import RequestError, SourceError
from engine.serving.jobs.schema import JobLimits
from engine.serving.worker.handler import ENVELOPE, Terms


def test_the_fake_is_a_service() -> None:
    assert isinstance(FakeService(), Service)


def test_a_video_is_answered_with_how_it_was_made() -> None:
    told = ask(worker(FakeService()))
    assert told["video_base64"]
    assert (told["frames"], told["seed"], told["timings"]) == (9, 42, {"denoise": 2.5})
    assert told["warnings"] == ["cut"]
    assert "error" not in told


def test_the_request_bears_the_jobs_name() -> None:
    service = FakeService()
    ask(worker(service))
    assert service.requests[0].job == "job-1"
    assert service.requests[0].sink is None


def test_a_bucket_sent_along_is_used_for_this_job_alone() -> None:
    service = FakeService()
    handler = worker(service)
    ask(handler, s3Config=STORE)
    ask(handler)
    first, second = service.requests
    assert (first.sink, second.sink) == ("s3", None)
    assert first.store is not None
    assert first.store.bucket == "films"
    assert second.store is None


def test_a_job_chooses_among_the_workers_sinks() -> None:
    service = FakeService(sink="s3")
    ask(worker(service), {**GOOD, "output": {"sink": "base64"}})
    assert service.requests[0].sink == "base64"


def test_another_sink_is_refused_before_any_work() -> None:
    service = FakeService()
    told = ask(worker(service), {**GOOD, "output": {"sink": "disk"}})
    assert told["error_code"] == "unknown_choice"
    assert told["field"] == "output.sink"
    assert told["hint"] == "choose base64 or s3"
    assert not service.requests


def test_a_bad_job_is_refused_with_its_field() -> None:
    told = ask(worker(FakeService(), Terms(limits=JobLimits(frames=50))), {**GOOD, "num_frames": 51})
    assert (told["error_code"], told["field"]) == ("out_of_range", "num_frames")
    assert set(told) == {"error", "error_code", "field", "hint"}


def test_health_is_answered_while_the_weights_are_loaded() -> None:
    service = FakeService()
    service.gate = threading.Event()
    handler = worker(service)
    handler.warm_engine.warm()
    told = ask(handler, {"action": "health"})
    assert (told["status"], told["loaded"], told["jobs_done"]) == ("loading", False, 0)
    service.gate.set()
    handler.warm_engine.wait_until_ready(threading.Event())
    told = ask(handler, {"health_check": True})
    assert (told["status"], told["loaded"], told["jobs_done"]) == ("ready", True, 1)


def test_health_says_why_the_weights_are_not_there_and_no_path() -> None:
    service = FakeService()
    service.failure = SourceError("no weights in /runpod-volume/models", hint="get them with: fetch --preset multitalk")
    handler = worker(service)
    handler.warm_engine.warm()
    handler.warm_engine.wait_until_ready(threading.Event())
    told = ask(handler, {"action": "health"})
    assert told["status"] == "unhealthy"
    assert "fetch --preset multitalk" in told["problem"]
    assert "runpod-volume" not in json.dumps(told)
    assert "error" not in told


def test_capabilities_say_what_a_job_may_choose() -> None:
    told = ask(worker(FakeService()), {"action": "capabilities"})
    assert told["sinks"] == ["base64", "s3"]
    assert told["limits"]["frames"] == 201
    assert "selftest" in told["actions"]


def test_a_plan_is_the_command_lines_without_paths() -> None:
    service = FakeService()
    told = ask(worker(service), {**GOOD, "action": "plan"})
    assert {field.name for field in dataclasses.fields(PLAN)} <= set(told)
    assert told["weights"] == "tiny"
    assert told["estimates"] is None
    assert "/secret" not in json.dumps(told)


def test_a_selftest_runs_the_tiny_model_alone() -> None:
    service = FakeService(memory="model-offload", sink="s3")
    told = ask(worker(service), {"action": "selftest"})
    assert told["ok"] is True
    assert (told["frames"], len(told["sha256"])) == (9, 64)
    ((overrides, alone),) = service.opened
    assert alone
    assert {"model=tiny", "source=packaged", "sink=base64", "device=cpu"} <= set(overrides)
    assert service.requests[0].image.startswith("data:")


def test_a_selftest_that_makes_no_video_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker_fakes.VIDEO", "AAAA")
    assert ask(worker(FakeService()), {"action": "selftest"})["error_code"] == "selftest_failed"


def test_a_video_that_waits_is_delivered_and_not_made_again() -> None:
    service = FakeService()
    service.resumed = Resumed(
        *("https://films.example.com/7.mp4", None, "0" * 64, 7, ("waited",)),
        media_type="video/mp4",
        seconds=4.0,
        frames=100,
        fps=25.0,
        seed=42,
        timings={},
    )
    told = ask(worker(service))
    assert told["video_url"] == "https://films.example.com/7.mp4"
    assert told["warnings"] == ["waited"]
    assert not service.requests


def test_the_first_answer_says_what_the_start_took() -> None:
    handler = worker(FakeService())
    handler.warm_engine.warm()
    first, second = ask(handler), ask(handler)
    assert first["cold_start"]["imports"] == 1.5
    assert first["cold_start"]["weights"] == 2.5
    assert "waited" in first["cold_start"]
    assert "cold_start" not in second


def test_weights_are_loaded_once_and_the_first_job_waits_for_them() -> None:
    service = FakeService()
    handler = worker(service)
    handler.warm_engine.warm()
    ask(handler)
    ask(handler)
    assert service.loads == 1


def test_an_answer_too_long_for_the_platform_is_an_error_that_names_s3() -> None:
    service = FakeService()
    service.content = "A" * 5000
    told = ask(worker(service, Terms(answer_bytes=5000)))
    assert told["error_code"] == "answer_too_large"
    assert "S3" in told["hint"]
    assert "video_base64" not in told


def test_the_engine_is_told_what_the_answer_carries_of_the_video() -> None:
    service = FakeService()
    ask(worker(service, Terms(answer_bytes=1_000_000)))
    room = service.requests[0].answer_bytes
    assert room is not None
    assert 980_000 < room < 1_000_000 - ENVELOPE


def test_what_is_measured_is_what_is_sent() -> None:
    service = FakeService()
    told = ask(worker(service))
    size = len(json.dumps({"output": told}, ensure_ascii=False).encode())
    told = ask(worker(service, Terms(answer_bytes=size + 1024)))
    # The seconds of the start may have a digit more or less.
    assert "error" not in told or told["error_code"] == "answer_too_large"
    assert ask(worker(service, Terms(answer_bytes=size + 1000)))["error_code"] == "answer_too_large"


def test_a_bug_is_a_reference_and_its_traceback_is_in_the_log_alone(caplog: pytest.LogCaptureFixture) -> None:
    def work(*_: object) -> None:
        raise ZeroDivisionError("in /home/anna")

    told = ask(worker(FakeService(work)))
    assert told["error_code"] == "internal_error"
    assert "anna" not in json.dumps(told)
    assert "refresh_worker" not in told
    assert "ZeroDivisionError" in caplog.text


def test_a_lost_device_asks_for_a_new_worker() -> None:
    def work(*_: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    told = ask(worker(FakeService(work)))
    assert (told["error_code"], told["refresh_worker"]) == ("internal_error", True)


def test_an_error_of_the_engine_keeps_its_code_and_no_secret() -> None:
    def work(*_: object) -> None:
        raise RequestError("the key job/secret+key is wrong", field="request.store", code="s3_credentials_refused")

    told = ask(worker(FakeService(work)), s3Config=STORE)
    assert (told["error_code"], told["field"]) == ("s3_credentials_refused", "s3Config")
    assert "job/secret+key" not in json.dumps(told)


def test_progress_is_in_order_and_none_follows_the_answer() -> None:
    sent = Sent()
    ask(worker(FakeService(steps), sent=sent))
    told = len(sent.payloads)
    time.sleep(0.05)
    assert 1 <= len(sent.payloads) == told
    fields = {"percent", "stage", "step", "steps", "window", "windows", "seconds_left", "warnings"}
    assert set(sent.payloads[0]) == fields


def test_a_cancelled_job_is_held_until_the_device_is_free() -> None:
    ended: list[str] = []

    def work(service: FakeService, request: object, progress: object, cancel: object) -> None:
        try:
            until_cancelled(service, request, progress, cancel)  # type: ignore[arg-type]
        finally:
            time.sleep(0.1)
            ended.append("thread")

    async def run() -> None:
        handler = worker(FakeService(work))
        task = asyncio.create_task(handler.handle({"id": "job-1", "input": GOOD}))
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.sleep(0.02)
        # Impatience changes nothing.
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        ended.append("task")

    asyncio.run(run())
    assert ended == ["thread", "task"]


def test_a_job_is_cancelled_while_it_waits_for_the_weights() -> None:
    service = FakeService()
    service.gate = threading.Event()

    async def run() -> float:
        handler = worker(service)
        handler.warm_engine.warm()
        task = asyncio.create_task(handler.handle({"id": "job-1", "input": GOOD}))
        await asyncio.sleep(0.05)
        began = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return time.monotonic() - began

    assert asyncio.run(run()) < 5
    assert not service.requests
    service.gate.set()


def test_the_event_loop_is_free_while_a_job_runs() -> None:
    async def run() -> None:
        gate = threading.Event()

        def work(*_: object) -> None:
            gate.wait(60)

        handler = worker(FakeService(work))
        task = asyncio.create_task(handler.handle({"id": "job-1", "input": GOOD}))
        for _ in range(3):
            await asyncio.sleep(0.01)
        assert not task.done()
        gate.set()
        await task

    asyncio.run(run())


def test_a_worker_that_is_told_to_end_says_so_in_the_answer() -> None:
    async def run() -> dict[str, object]:
        handler = worker(FakeService(until_cancelled))
        task = asyncio.create_task(handler.handle({"id": "job-1", "input": GOOD}))
        await asyncio.sleep(0.05)
        handler.stopped.set()
        return await task

    told = asyncio.run(run())
    assert told["error_code"] == "worker_stopped"
    assert "/retry" in str(told["hint"])


def test_a_stopped_worker_begins_nothing() -> None:
    service = FakeService()
    handler = worker(service)
    handler.stopped.set()
    assert ask(handler)["error_code"] == "worker_stopped"
    assert not service.requests


def test_each_line_of_a_job_bears_its_id(caplog: pytest.LogCaptureFixture) -> None:
    handler = worker(FakeService())
    ids: list[str] = []

    class Watch(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            ids.append(handler._context.job)

    logger = logging.getLogger("engine.serving.worker")
    watch = Watch()
    logger.addHandler(watch)
    try:
        with caplog.at_level(logging.INFO):
            ask(handler)
    finally:
        logger.removeHandler(watch)
    assert ids
    assert set(ids) == {"job-1"}
    assert handler._context.job == ""
