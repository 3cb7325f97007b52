"""What an endpoint does with requests that are malformed, too many, or from where they should not come."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from running_endpoint import RunningEndpoint, running

from engine.errors import ConfigError
from engine.serving.endpoint.jobs import JobQueue, QueueFull
from engine.serving.endpoint.limits import EndpointLimits
from engine.serving.endpoint.server import LocalEndpoint
from engine.serving.hosts import is_loopback

HTTP = httpx2.Client(timeout=60, trust_env=False)
JOB = {"input": {"prompt": "a"}}


@pytest.fixture(scope="module")
def server() -> Iterator[RunningEndpoint]:
    with running(workers=0, limits=EndpointLimits(poll=0.2)) as server:
        yield server


@pytest.fixture(scope="module")
def locked() -> Iterator[RunningEndpoint]:
    with running(workers=0, api_key="sesame", limits=EndpointLimits(poll=0.2)) as server:
        yield server


def raw(server: RunningEndpoint, text: bytes) -> tuple[int, dict[str, Any], str]:
    """Send bytes as they are; return status, body and media type of the answer."""
    with socket.create_connection((server.endpoint.host, server.endpoint.port), timeout=20) as connection:
        connection.sendall(text)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return int(first.split()[1]), json.loads(body), headers["content-type"]


def request(server: RunningEndpoint, body: bytes, *headers: str, path: str = "run", length: bool = True) -> bytes:
    lines = [
        f"POST /v2/local/{path} HTTP/1.1",
        f"Host: 127.0.0.1:{server.endpoint.port}",
        "Connection: close",
        *([f"Content-Length: {len(body)}"] if length else []),
        *headers,
    ]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


MALFORMED = {
    "nothing": b"",
    "no JSON": b"{",
    "a form": b"input=a&prompt=b",
    "deep lists": b"[" * 100_000,
    "deep and whole lists": b'{"input": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    "deep objects": b'{"input":' * 60_000 + b"{}" + b"}" * 60_000,
    "lists that a parser still reads": b'{"input": {"a": ' + b"[" * 200 + b"]" * 200 + b"}}",
    "millions of values": b'{"input": {"a": [' + b"{}," * 3_000_000 + b"{}]}}",
    "no UTF-8": b'{"input": {"prompt": "\xff\xfe"}}',
    "UTF-16": json.dumps(JOB).encode("utf-16"),
    "NaN": b'{"input": {"fps": NaN}}',
    "infinity": b'{"input": {"fps": -Infinity}}',
    "a number beyond floats": b'{"input": {"fps": 1e999}}',
    "a number of 5000 digits": b'{"input": {"seed": ' + b"9" * 5000 + b"}}",
    "a name twice": b'{"input": {"seed": 1, "seed": 2}}',
    "input twice": b'{"input": {}, "input": {"prompt": "a"}}',
    "a control character": b'{"input": {"prompt": "a\nb"}}',
    "policy.ttl of 401 digits": b'{"input": {}, "policy": {"ttl": 1' + b"0" * 400 + b"}}",
    "policy.executionTimeout of 401 digits": b'{"input": {}, "policy": {"executionTimeout": -1' + b"0" * 400 + b"}}",
    "policy.ttl as a list": b'{"input": {}, "policy": {"ttl": [1]}}',
    "policy as text": b'{"input": {}, "policy": "soon"}',
    "a webhook that is a number": b'{"input": {}, "webhook": 7}',
    "input as JSON text": json.dumps({"input": json.dumps(JOB["input"])}).encode(),
    "JSON text in JSON text": json.dumps(json.dumps(JOB)).encode(),
    "a list": b"[1]",
    "null": b"null",
}


@pytest.mark.parametrize("what", MALFORMED)
@pytest.mark.parametrize("path", ["run", "runsync"])
def test_a_malformed_body_is_answered_400_in_json(server: RunningEndpoint, what: str, path: str) -> None:
    status, told, kind = raw(server, request(server, MALFORMED[what], path=path))
    assert status == 400, told
    assert kind.startswith("application/json")
    assert 0 < len(told["error"]) < 400
    assert told["error"].isprintable()


@pytest.mark.parametrize(
    "headers",
    [
        ("Content-Encoding: gzip",),
        ("Content-Encoding: deflate",),
        ("Content-Encoding: br",),
    ],
)
def test_a_body_that_is_not_what_its_headers_say_is_answered_400_in_json(
    server: RunningEndpoint, headers: tuple[str]
) -> None:
    status, told, kind = raw(server, request(server, json.dumps(JOB).encode() * 3, *headers))
    assert (status, kind.partition(";")[0]) == (400, "application/json"), told


@pytest.mark.parametrize(
    "text",
    [
        b"GET / HTTP/9.9\r\n\r\n",
        b"no http at all\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost 127.0.0.1\r\n\r\n",
        b"POST /v2/local/run HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -5\r\n\r\n{}",
        b"POST /v2/local/run HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1e3\r\n\r\n{}",
        b"POST /v2/local/run HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        b"POST /v2/local/run HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"a" * 20_000 + b"\r\n\r\n",
    ],
)
def test_what_is_no_http_is_answered_400_in_json(server: RunningEndpoint, text: bytes) -> None:
    status, told, kind = raw(server, text)
    assert (status, kind.partition(";")[0]) == (400, "application/json")
    assert told["error"]


@pytest.mark.parametrize("key", ["Bearer \xff\xfe", "\xe4\xf6\xfc", "Bearer sesam\xe9", "Bearer " + "a" * 7000, ""])
def test_a_key_of_any_bytes_is_wrong_and_no_bug(locked: RunningEndpoint, key: str) -> None:
    status, told, _ = raw(locked, request(locked, b"{}", f"Authorization: {key}"))
    assert (status, "API key" in told["error"]) == (401, True)


def test_a_page_or_verb_that_is_not_there_is_answered_in_json(server: RunningEndpoint) -> None:
    for method, path, status in (("GET", "v2/local/run", 405), ("GET", "nothing", 404), ("TRACE", "v2/local/run", 405)):
        response = HTTP.request(method, f"{server.endpoint.url}/{path}")
        assert response.status_code == status
        assert response.json()["error"]


# --- the queue --------------------------------------------------------------------------------------------------------


def test_the_queue_is_limited_and_says_how_to_go_on() -> None:
    with running(workers=0, limits=EndpointLimits(queue_jobs=2, poll=0.2)) as server:
        ids = [HTTP.post(server.url("run"), json=JOB).json()["id"] for _ in range(2)]
        for verb in ("run", "runsync"):
            response = HTTP.post(server.url(verb), json=JOB)
            assert response.status_code == 429
            assert int(response.headers["Retry-After"]) > 0
            assert "--queue-jobs" in response.json()["error"]
        HTTP.post(server.url(f"cancel/{ids[0]}"))
        assert HTTP.post(server.url("run"), json=JOB).status_code == 200


def test_the_bytes_of_the_queue_are_limited() -> None:
    with running(workers=0, limits=EndpointLimits(queue_bytes=2500, poll=0.2)) as server:
        body = {"input": {"prompt": "a" * 1000}}
        assert [HTTP.post(server.url("run"), json=body).status_code for _ in range(3)] == [200, 200, 429]
        assert HTTP.post(server.url("purge-queue")).json()["removed"] == 2
        assert server.endpoint.jobs.held_bytes == 0
        assert HTTP.post(server.url("run"), json=body).status_code == 200


def book(**limits: Any) -> JobQueue:
    return JobQueue(EndpointLimits(**limits), clock=iter(range(10**6)).__next__)


def test_inputs_of_jobs_that_are_over_are_let_go_but_for_those_that_can_be_retried() -> None:
    jobs = book()
    done, failed, cancelled, slow = (jobs.submit(JOB, size=10) for _ in range(4))
    jobs.take("w", 4)
    jobs.finish(done, {"output": 1})
    jobs.finish(failed, {"error": "x"})
    jobs.cancel(cancelled)
    assert (done.payload, failed.payload, cancelled.payload, slow.payload) == ({}, JOB, {}, JOB)
    assert jobs.held_bytes == 20
    assert jobs.retry(failed)
    assert jobs.take("w")[0].payload == JOB
    jobs.finish(failed, {"output": 1})
    assert jobs.held_bytes == 10


def test_inputs_of_failed_jobs_make_room_for_others_the_oldest_first() -> None:
    jobs = book(queue_bytes=30)
    failed = [jobs.submit(JOB, size=10) for _ in range(3)]
    jobs.take("w", 3)
    for job in failed:
        jobs.finish(job, {"error": "x"})
    jobs.submit(JOB, size=15)
    assert [bool(job.payload) for job in failed] == [False, False, True]
    assert jobs.held_bytes == 25
    assert not jobs.retry(failed[0])
    with pytest.raises(QueueFull):
        jobs.submit(JOB, size=16)
    assert failed[2].payload, "nothing is let go for a job that is not taken"
    assert jobs.retry(failed[2])


def test_a_retry_whose_input_is_gone_says_so() -> None:
    with running(workers=0, limits=EndpointLimits(queue_bytes=3000, poll=0.2)) as server:
        body = {"input": {"prompt": "a" * 1000}}
        first = HTTP.post(server.url("run"), json=body).json()["id"]
        server.ask(lambda: server.endpoint.jobs.take("w"))
        server.ask(lambda: server.endpoint.jobs.finish(server.job(first), {"error": "x"}))
        for _ in range(2):
            assert HTTP.post(server.url("run"), json=body).status_code == 200
        response = HTTP.post(server.url(f"retry/{first}"))
        assert response.status_code == 400
        assert "dropped" in response.json()["error"]


def test_what_is_forgotten_is_not_held() -> None:
    now = [0.0]
    jobs = JobQueue(EndpointLimits(run_retention=5), clock=lambda: now[0])
    job = jobs.submit(JOB, size=10)
    waiting = jobs.submit(JOB, size=10, policy={"ttl": 3})
    jobs.take("w")
    jobs.finish(job, {"error": "x"})
    now[0] = 10
    jobs.tick()
    assert jobs.find(waiting.id) is None
    assert jobs.find(job.id) is None
    assert jobs.held_bytes == 0


# --- who may ask ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.7.7", "10.0.0.1", "example.org", "", "2001:db8::1"])
def test_an_endpoint_that_others_reach_needs_a_key_or_a_name(host: str) -> None:
    with pytest.raises(ConfigError, match="can reach") as caught:
        LocalEndpoint(["true"], host=host)
    assert caught.value.field == "entrypoint.host"
    assert "--api-key" in caught.value.hint
    assert "--allowed-host" in caught.value.hint
    LocalEndpoint(["true"], host=host, api_key="sesame")
    LocalEndpoint(["true"], host=host, allowed_hosts=["box.lan"])


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "127.9.9.9", "localhost", "::1", "LOCALHOST"])
def test_an_endpoint_of_this_machine_alone_needs_none(host: str) -> None:
    assert is_loopback(host)
    LocalEndpoint(["true"], host=host)


def test_an_empty_key_is_none() -> None:
    with pytest.raises(ConfigError, match="an empty key"):
        LocalEndpoint(["true"], host="0.0.0.0", api_key="")


def asked_for(server: RunningEndpoint, name: str, origin: str | None = None, key: str = "") -> int:
    headers = {"Host": name} | ({"Origin": origin} if origin else {}) | ({"Authorization": key} if key else {})
    return HTTP.post(server.url("run"), json=JOB, headers=headers).status_code


REBOUND = [
    "evil.example",
    "evil.example:8000",
    "127.0.0.1.evil.example",
    "localhost.evil.example",
    "127.0.0.1@evil.example",
]


@pytest.mark.parametrize("name", REBOUND)
def test_a_page_whose_name_was_made_to_point_here_is_refused(
    server: RunningEndpoint, locked: RunningEndpoint, name: str
) -> None:
    assert asked_for(server, name, f"http://{name}") == 403
    assert asked_for(server, name) == 403
    assert asked_for(locked, name, f"http://{name}", "sesame") == 403


def test_another_address_of_loopback_is_no_way_around_the_check() -> None:
    with running(workers=0, host="127.0.0.2", limits=EndpointLimits(poll=0.2)) as server:
        port = server.endpoint.port
        for name in REBOUND:
            assert asked_for(server, f"{name}:{port}", f"http://{name}:{port}") == 403
        for name in ("127.0.0.2", "127.0.0.1", "localhost", "LocalHost.", "[::1]"):
            assert asked_for(server, f"{name}:{port}") == 200, name
        assert asked_for(server, "127.0.0.3") == 403


def test_an_open_endpoint_is_asked_for_by_its_names_alone() -> None:
    with running(workers=0, host="0.0.0.0", allowed_hosts=["Box.lan"], limits=EndpointLimits(poll=0.2)) as server:
        statuses = [asked_for(server, name) for name in ("box.lan:1", "BOX.LAN.", "localhost", "10.1.2.3", *REBOUND)]
        assert statuses == [200, 200, 200, 403, *[403] * len(REBOUND)]


def test_an_open_endpoint_with_a_key_is_asked_for_by_addresses_and_not_by_names_it_does_not_know() -> None:
    with running(workers=0, host="0.0.0.0", api_key="sesame", limits=EndpointLimits(poll=0.2)) as server:
        names = ("10.1.2.3:8000", "[2001:db8::1]:8000", "localhost", "box.lan", *REBOUND)
        assert [asked_for(server, name, key="sesame") for name in names] == [200, 200, 200, 403, *[403] * len(REBOUND)]
        assert asked_for(server, "10.1.2.3", key="guess") == 401


def test_that_a_worker_is_killed_is_said_once(caplog: pytest.LogCaptureFixture, tmp_path: Any) -> None:
    pytest.importorskip("runpod")
    with (
        caplog.at_level(logging.WARNING, "engine.serving.endpoint"),
        running(limits=EndpointLimits(grace=0.5, poll=1)) as server,
    ):
        job = HTTP.post(server.url("run"), json={"input": {"do": "block"}}).json()["id"]
        server.until(lambda: server.job(job).state == "IN_PROGRESS")
        before = set(server.endpoint.pool.workers)
        HTTP.post(server.url(f"cancel/{job}"))
        server.until(lambda: not before & set(server.endpoint.pool.workers))
    said = [record.getMessage() for record in caplog.records if "is killed" in record.getMessage()]
    assert [line for line in said if any(worker in line for worker in before)] == said[:1]
    assert len(said) >= 1
