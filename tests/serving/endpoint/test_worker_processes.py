"""Real worker processes on the SDK's own loop, asked through the stock client: what becomes of their jobs."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from running_endpoint import PATIENCE, RunningEndpoint, running

from engine.serving.endpoint.jobs import EndpointJob
from engine.serving.endpoint.limits import EndpointLimits

runpod = pytest.importorskip("runpod")
LIMITS = EndpointLimits(run_bytes=100_000, sync_bytes=200_000, attempts=3, grace=2, webhook_delay=0)


@pytest.fixture(scope="module")
def server() -> Iterator[RunningEndpoint]:
    with running(workers=2, limits=LIMITS) as server:
        yield server


@pytest.fixture
def endpoint(server: RunningEndpoint, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The stock client, pointed at the endpoint as RUNPOD_ENDPOINT_BASE_URL does when it is imported."""
    monkeypatch.setattr(runpod, "endpoint_url_base", server.endpoint.base_url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return runpod.Endpoint(server.endpoint.endpoint_id, api_key="any")


def finished(server: RunningEndpoint, told: Any) -> EndpointJob:
    job = server.job(told.job_id)
    server.until(lambda: job.final)
    return job


def started(server: RunningEndpoint, told: Any) -> EndpointJob:
    job = server.job(told.job_id)
    server.until(lambda: job.state == "IN_PROGRESS")
    return job


def test_stock_client_runs_a_job_and_reads_its_output(server: RunningEndpoint, endpoint: Any) -> None:
    told = endpoint.run({"do": "echo", "prompt": "a, b"})
    finished(server, told)
    assert told.status() == "COMPLETED"
    assert told.output()["asked"] == {"do": "echo", "prompt": "a, b"}


def test_stock_client_runs_a_job_and_waits_for_it(endpoint: Any) -> None:
    assert endpoint.run_sync({"do": "echo", "seed": 3}, timeout=60)["asked"]["seed"] == 3


def test_a_worker_is_given_the_jobs_own_bucket(endpoint: Any) -> None:
    sent = {"input": {"do": "echo"}, "s3Config": {"bucketName": "films"}}
    assert endpoint.run_sync(sent, timeout=60)["s3Config"] == {"bucketName": "films"}


def test_stock_client_reads_health_and_empties_the_queue(
    server: RunningEndpoint, endpoint: Any, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    held = [endpoint.run({"do": "hold", "gate": str(gate)}) for _ in range(2)]
    jobs = [started(server, told) for told in held]
    assert len({job.worker for job in jobs}) == 2
    waiting = endpoint.run({"do": "echo"})
    assert endpoint.health()["workers"]["running"] == 2
    assert endpoint.health()["jobs"]["inQueue"] == 1
    assert endpoint.purge_queue() == {"removed": 1, "status": "completed"}
    assert waiting.status() == "CANCELLED"
    gate.touch()
    assert [finished(server, told).state for told in held] == ["COMPLETED"] * 2


def test_progress_is_the_output_of_a_job_at_work(server: RunningEndpoint, endpoint: Any, tmp_path: Path) -> None:
    told = endpoint.run({"do": "tell", "gate": str(tmp_path / "gate")})
    job = server.job(told.job_id)
    server.until(lambda: job.has_output)
    assert told.status() == "IN_PROGRESS"
    assert told.output() == {"percent": 50, "stage": "denoise"}
    (tmp_path / "gate").touch()
    assert finished(server, told).output["asked"]["do"] == "tell"


def test_cancel_reaches_the_handler_and_the_worker_goes_on(
    server: RunningEndpoint, endpoint: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The SDK asks once a second whether to stop, and of a busy machine more rarely.
    monkeypatch.setattr(server.endpoint.jobs, "limits", replace(LIMITS, grace=60))
    gate = tmp_path / "gate"
    told = endpoint.run({"do": "hold", "gate": str(gate)})
    worker = started(server, told).worker
    until = time.monotonic() + PATIENCE
    while not Path(f"{gate}.begun").exists():
        assert time.monotonic() < until
        time.sleep(0.02)
    assert told.cancel() == {"id": told.job_id, "status": "CANCELLED"}
    server.until(lambda: worker not in server.endpoint.jobs._held)
    assert Path(f"{gate}.stopped").exists()
    assert server.ask(lambda: worker in server.endpoint.pool.workers)


def test_an_answer_with_an_error_fails_the_job(server: RunningEndpoint, endpoint: Any) -> None:
    told = endpoint.run({"do": "fail"})
    job = finished(server, told)
    assert (told.status(), job.error) == ("FAILED", "num_frames: too many")
    assert told.output() == {"error_code": "out_of_range", "field": "num_frames", "hint": "fewer"}


def test_an_exception_of_the_handler_fails_the_job(server: RunningEndpoint, endpoint: Any) -> None:
    assert "a bug" in finished(server, endpoint.run({"do": "raise"})).error


def test_a_result_that_is_too_large_fails_and_says_so(server: RunningEndpoint, endpoint: Any) -> None:
    job = finished(server, endpoint.run({"do": "big", "size": 150_000}))
    assert job.state == "FAILED"
    assert "larger than 0.1 MB" in job.error
    assert len(endpoint.run_sync({"do": "big", "size": 150_000}, timeout=60)["text"]) == 150_000


def test_a_result_that_the_sdk_could_not_send_fails_and_says_so(server: RunningEndpoint, endpoint: Any) -> None:
    assert "could not be sent" in finished(server, endpoint.run({"do": "lose"})).error


def test_a_worker_that_dies_is_replaced_and_its_job_runs_again(
    server: RunningEndpoint, endpoint: Any, tmp_path: Path
) -> None:
    told = endpoint.run({"do": "die", "note": str(tmp_path / "died"), "gate": str(tmp_path / "gate")})
    first = started(server, told).worker
    (tmp_path / "gate").touch()
    job = finished(server, told)
    assert (job.state, job.attempts) == ("COMPLETED", 2)
    assert job.worker != first
    server.until(lambda: len(server.endpoint.pool.workers) == 2)
    assert not Path((tmp_path / "died").read_text("utf-8")).exists(), "what it left on the disk is gone with it"


def test_refresh_replaces_the_process_after_the_answer(server: RunningEndpoint, endpoint: Any) -> None:
    job = finished(server, endpoint.run({"do": "refresh"}))
    assert (job.state, list(job.output)) == ("COMPLETED", ["pid"])
    server.until(lambda: job.worker not in server.endpoint.pool.workers)
    with pytest.raises(ProcessLookupError):
        os.kill(job.output["pid"], 0)


def test_a_handler_that_cannot_be_stopped_is_killed_after_the_time_of_grace(
    server: RunningEndpoint, endpoint: Any
) -> None:
    job = started(server, told := endpoint.run({"do": "block"}))
    told.cancel()
    server.until(lambda: job.worker not in server.endpoint.pool.workers)
    assert job.state == "CANCELLED"


def test_a_webhook_is_called_again_until_it_answers_200(server: RunningEndpoint, endpoint: Any) -> None:
    import json

    heard: list[dict[str, Any]] = []
    done = threading.Event()

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(500 if len(heard) == 1 else 200)
            self.end_headers()
            if len(heard) == 2:
                done.set()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    hooks = HTTPServer(("127.0.0.1", 0), Hook)
    thread = threading.Thread(target=hooks.serve_forever)
    thread.start()
    try:
        hook = f"http://127.0.0.1:{hooks.server_port}/hook"
        told = endpoint.run({"input": {"do": "echo", "seed": 5}, "webhook": hook})
        assert done.wait(60)
    finally:
        hooks.shutdown()
        thread.join()
        hooks.server_close()
    assert [(call["id"], call["status"]) for call in heard] == [(told.job_id, "COMPLETED")] * 2
    assert heard[0]["output"]["asked"]["seed"] == 5


def test_stock_asyncio_client_works_too(server: RunningEndpoint, endpoint: Any, tmp_path: Path) -> None:
    import aiohttp

    async def talk() -> tuple[Any, ...]:
        async with aiohttp.ClientSession() as session:
            stock = runpod.AsyncioEndpoint(server.endpoint.endpoint_id, session, api_key="any")
            held = await stock.run({"do": "hold", "gate": str(tmp_path / "gate")})
            cancelled = await held.cancel()
            job = await stock.run({"do": "echo", "seed": 9})
            return cancelled["status"], (await job.output(timeout=60))["asked"]["seed"], await stock.health()

    cancelled, seed, health = asyncio.run(talk())
    assert (cancelled, seed) == ("CANCELLED", 9)
    assert health["workers"]["throttled"] == 0


def test_stock_client_reads_a_stream_and_no_process_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    psutil = pytest.importorskip("psutil")
    with running("stream", limits=LIMITS) as server:
        monkeypatch.setattr(runpod, "endpoint_url_base", server.endpoint.base_url)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        told = runpod.Endpoint(server.endpoint.endpoint_id, api_key="any").run({"count": 3})
        job = finished(server, told)
        assert list(told.stream()) == [{"number": number} for number in range(3)]
        assert job.output == [{"number": number} for number in range(3)]
        (worker,) = server.endpoint.pool.workers.values()
        processes = [psutil.Process(worker.process.pid), *psutil.Process(worker.process.pid).children(recursive=True)]
        assert len(processes) >= 2, "the heartbeat is a process of its own"
    _, left = psutil.wait_procs(processes, timeout=PATIENCE)
    assert not left
