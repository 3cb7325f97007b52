"""The verbs without any worker: what they take, refuse and say, and who may call them."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from running_endpoint import PATIENCE, RunningEndpoint, running

from engine.errors import ConfigError
from engine.serving.endpoint.limits import EndpointLimits
from engine.serving.endpoint.server import LocalEndpoint

JOB = {"input": {"prompt": "a"}}
#: One for all: each new client reads the certificates of the system.
HTTP = httpx2.Client(timeout=60, trust_env=False)


@pytest.fixture(scope="module")
def server() -> Iterator[RunningEndpoint]:
    with running(
        workers=0, limits=EndpointLimits(run_bytes=1000, sync_bytes=2000, sync_retention=0.5, poll=0.2)
    ) as server:
        yield server


@pytest.fixture(autouse=True)
def emptied(server: RunningEndpoint) -> Iterator[None]:
    yield
    server.ask(server.endpoint.jobs.purge)


def post(server: RunningEndpoint, verb: str, body: Any = None, **options: Any) -> httpx2.Response:
    return HTTP.post(server.url(verb), json=body, **options)


def get(server: RunningEndpoint, verb: str, **options: Any) -> httpx2.Response:
    return HTTP.get(server.url(verb), **options)


def submitted(server: RunningEndpoint) -> str:
    return str(post(server, "run", JOB).json()["id"])


def test_run_answers_at_once_with_an_id(server: RunningEndpoint) -> None:
    told = post(server, "run", JOB).json()
    assert told["status"] == "IN_QUEUE"
    assert get(server, f"status/{told['id']}").json()["id"] == told["id"]
    assert post(server, f"status/{told['id']}").json()["status"] == "IN_QUEUE"


def test_runsync_waits_as_long_as_it_is_told(server: RunningEndpoint) -> None:
    before = time.monotonic()
    told = post(server, "runsync?wait=1000", JOB).json()
    assert told["status"] == "IN_QUEUE"
    assert told["id"].startswith("sync-")
    assert time.monotonic() - before >= 1


def test_a_result_of_runsync_is_kept_as_long_as_was_asked_to_wait(server: RunningEndpoint) -> None:
    told = post(server, "runsync?wait=1000", JOB).json()
    assert server.job(told["id"]).retention == 1


@pytest.mark.parametrize(
    ("verb", "body", "told"),
    [
        ("run", {"prompt": "a"}, "input"),
        ("run", {"input": "a"}, "input"),
        ("run", [], "input"),
        ("run", {**JOB, "policy": {"executionTimeout": 4999}}, "policy.executionTimeout"),
        ("run", {**JOB, "policy": {"executionTimeout": True}}, "policy.executionTimeout"),
        ("run", {**JOB, "policy": {"ttl": "soon"}}, "policy.ttl"),
        ("run", {**JOB, "policy": {"priority": 1}}, "policy.priority"),
        ("run", {**JOB, "webhook": "ftp://a"}, "webhook"),
        ("runsync?wait=999", JOB, "wait"),
        ("runsync?wait=300001", JOB, "wait"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(server: RunningEndpoint, verb: str, body: Any, told: str) -> None:
    response = post(server, verb, body)
    assert response.status_code == 400
    assert told in response.json()["error"]


def test_a_body_that_is_no_json_is_refused(server: RunningEndpoint) -> None:
    response = HTTP.post(server.url("run"), content=b"{")
    assert (response.status_code, response.json()["error"][:20]) == (400, "the body is not JSON")


@pytest.mark.parametrize(("verb", "size", "status"), [("run", 900, 200), ("run", 1001, 413), ("runsync", 2001, 413)])
def test_bodies_are_limited_by_verb(server: RunningEndpoint, verb: str, size: int, status: int) -> None:
    response = post(server, verb, {"input": {"prompt": "x" * (size - len('{"input":{"prompt":""}}'))}})
    assert response.status_code == status
    if status == 413:
        assert "URL" in response.json()["error"]


@pytest.mark.parametrize("verb", ["status", "stream"])
def test_a_job_that_is_not_there_is_404(server: RunningEndpoint, verb: str) -> None:
    assert get(server, f"{verb}/gone").status_code == 404
    assert post(server, "cancel/gone").status_code == 404


def test_a_waiting_job_can_be_cancelled_and_then_not_retried(server: RunningEndpoint) -> None:
    job = submitted(server)
    assert post(server, f"cancel/{job}").json() == {"id": job, "status": "CANCELLED"}
    assert get(server, f"status/{job}").json()["status"] == "CANCELLED"
    response = post(server, f"retry/{job}")
    assert response.status_code == 400
    assert "FAILED" in response.json()["error"]


def test_purge_tells_how_many_it_removed(server: RunningEndpoint) -> None:
    for _ in range(3):
        submitted(server)
    assert post(server, "purge-queue").json() == {"removed": 3, "status": "completed"}
    assert get(server, "health").json()["jobs"]["inQueue"] == 0


def test_health_has_the_platforms_fields(server: RunningEndpoint) -> None:
    told = get(server, "health").json()
    assert sorted(told["jobs"]) == ["completed", "failed", "inProgress", "inQueue", "retried"]
    assert sorted(told["workers"]) == ["idle", "initializing", "ready", "running", "throttled", "unhealthy"]


def test_a_worker_that_is_not_ours_gets_no_job(server: RunningEndpoint) -> None:
    submitted(server)
    assert get(server, "job-take/stranger?token=guess&job_in_progress=0").status_code == 401
    token = server.endpoint.pool._environment("stranger")["RUNPOD_WEBHOOK_GET_JOB"].partition("?")[2]
    assert get(server, f"job-take/stranger?{token}&job_in_progress=0").status_code == 204


@pytest.mark.parametrize(("origin", "status"), [("http://evil.example", 403), ("null", 403), (None, 200)])
def test_pages_of_other_sites_cannot_send_jobs(server: RunningEndpoint, origin: str | None, status: int) -> None:
    assert post(server, "run", JOB, headers={"Origin": origin} if origin else {}).status_code == status


def test_our_own_page_can_send_jobs(server: RunningEndpoint) -> None:
    assert post(server, "run", JOB, headers={"Origin": server.endpoint.url}).status_code == 200


def test_a_name_that_only_points_here_is_refused(server: RunningEndpoint) -> None:
    assert get(server, "health", headers={"Host": f"evil.example:{server.endpoint.port}"}).status_code == 403


def test_the_page_loads_nothing_from_elsewhere(server: RunningEndpoint) -> None:
    for path, kind in (
        ("", "text/html"),
        ("page.css", "text/css"),
        ("page.js", "text/javascript"),
        ("player.js", "text/javascript"),
    ):
        response = HTTP.get(f"{server.endpoint.url}/{path}")
        assert response.headers["Content-Type"] == f"{kind}; charset=utf-8"
        assert "default-src 'none'" in response.headers["Content-Security-Policy"]
        assert "://" not in response.text


def test_each_field_of_the_page_has_a_label(server: RunningEndpoint) -> None:
    text = HTTP.get(server.endpoint.url).text
    fields = re.findall(r"<(?:input|select|textarea) id=\"(\w+)\"", text)
    assert len(fields) >= 12
    assert sorted(fields) == sorted(re.findall(r"<label[^>]* for=\"(\w+)\"", text))
    assert f'content="{server.endpoint.endpoint_id}"' in text


def test_a_key_is_needed_where_one_is_configured() -> None:
    with running(workers=0, api_key="sesame") as server:
        statuses = [
            get(server, "health", headers={"Authorization": key} if key else {}).status_code
            for key in ("Bearer sesame", "sesame", "Bearer wrong", "")
        ]
    assert statuses == [200, 200, 401, 401]


def test_too_many_calls_of_a_verb_are_told_when_to_come_again() -> None:
    with running(workers=0, limits=EndpointLimits(rate=2)) as server:
        job = submitted(server)
        answers = [get(server, f"status/{job}") for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert 1 <= int(answers[2].headers["Retry-After"]) <= 10
        assert get(server, "health").status_code == 200


def test_a_taken_port_and_a_missing_command_are_told(server: RunningEndpoint) -> None:
    async def opened(**options: Any) -> None:
        async with LocalEndpoint(options.pop("worker", ["true"]), workers=0, **options):
            pass

    with pytest.raises(ConfigError, match="cannot listen"):
        asyncio.run(opened(port=server.endpoint.port))
    with pytest.raises(ConfigError, match="there is no command 'no-such-worker'"):
        asyncio.run(opened(worker=["no-such-worker"]))
    with pytest.raises(ConfigError, match="valid endpoint id"):
        LocalEndpoint(["true"], endpoint_id="../a")


def test_a_worker_that_ends_before_it_asks_for_work_is_told_as_unhealthy() -> None:
    with running(worker=["false"]) as server:
        pool, busy = server.endpoint.pool, server.endpoint.jobs.busy
        # Asked again and again: the bell rings for jobs and workers, and nothing rings for a place that waits.
        numbers = server.ask(lambda: pool.numbers(busy))
        began = time.monotonic()
        while numbers["unhealthy"] != 1 and time.monotonic() < began + PATIENCE:
            time.sleep(0.02)
            numbers = server.ask(lambda: pool.numbers(busy))
        assert numbers["unhealthy"] == 1
        assert numbers["ready"] == 0
