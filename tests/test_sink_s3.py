"""Videos reach a bucket or wait on this machine, whatever the store does meanwhile; and no secret is told."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import logging
import os
import random
import re
import socket
import subprocess
import sys
import threading
import time
import traceback
import urllib.request
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pluggy
import pytest
from omegaconf import OmegaConf

from engine import hookspecs
from engine.buckets import Bucket, Trouble
from engine.components import JobSink, Sink
from engine.data import Artifact, Credentials, Store
from engine.errors import ConfigError, EngineError, NotDelivered, RequestError, SinkError
from engine.register import Register
from plugins.sinks import s3 as plugin
from plugins.sinks.s3 import S3Config, S3Sink

VIDEO = bytes(range(256)) * 400
#: In two parts, of which the second is short.
LONG_VIDEO = VIDEO * (9 * 2**20 // len(VIDEO))
SECRET = "sentinel0secret0key"
TOKEN = "sentinel0session0token"
KEY_ID = "SENTINEL0KEY0ID"
OWN_SECRET = "sentinel0own0secret"
OWN_KEY_ID = "SENTINEL0OWN0ID"
SENTINELS = (SECRET, TOKEN, KEY_ID, OWN_SECRET, OWN_KEY_ID)


# --- a store, and a proxy before it that does harm --------------------------------------------------------------------

#: Does something in place of the store's answer; returns whether it did.
Fault = Callable[["Handler"], bool]


class Handler(BaseHTTPRequestHandler):
    """Hands a request on to the store, unless a fault comes first."""

    protocol_version = "HTTP/1.1"
    server: Proxy

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is http.server's
        """Keep quiet."""

    def serve(self) -> None:
        self.server.seen.append(f"{self.command} {self.path}")
        self.server.headers.append(dict(self.headers.items()))
        queue = self.server.faults.get(self.command, deque())
        fault = queue.popleft() if queue else self.server.always.get(self.command)
        if fault is None or not fault(self):
            self.hand_on(self.body())

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = serve

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def hand_on(self, body: bytes, changed: dict[str, str] | None = None) -> None:
        store = http.client.HTTPConnection("127.0.0.1", self.server.store, timeout=20)
        headers = {name: value for name, value in self.headers.items() if name.lower() != "expect"}
        store.request(self.command, self.path, body, headers)
        answer = store.getresponse()
        told = {name: value for name, value in answer.getheaders() if name.lower() not in ("connection", "date")}
        self.answer(
            answer.status, answer.read(), {name.lower(): value for name, value in told.items()} | (changed or {})
        )
        store.close()

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if name not in ("content-length", "transfer-encoding", "server"):
                self.send_header(name, value)
        length = headers.get("content-length", len(body)) if self.command == "HEAD" else len(body)
        self.send_header("content-length", str(length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class Proxy(ThreadingHTTPServer):
    """Faults by method: each of `faults` once, then `always`."""

    daemon_threads = True

    def __init__(self, store: int) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.store = store
        self.faults: dict[str, deque[Fault]] = {}
        self.always: dict[str, Fault] = {}
        self.seen: list[str] = []
        self.headers: list[dict[str, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def once(self, method: str, *faults: Fault) -> None:
        self.faults[method] = deque(faults)

    def count(self, method: str) -> int:
        return sum(seen.startswith(method) for seen in self.seen)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Connections end early here: that is the point."""


def refuse(status: int, code: str, **headers: str) -> Fault:
    """Answer as S3 does: the reason in XML, none to a HEAD; the text holds what must not be repeated."""

    def fault(handler: Handler) -> bool:
        handler.body()
        text = f"<Error><Code>{code}</Code><Message>{SECRET}</Message><AWSAccessKeyId>{KEY_ID}</AWSAccessKeyId></Error>"
        told = {name.replace("_", "-"): value for name, value in headers.items()}
        body = b"" if handler.command == "HEAD" else text.encode()
        handler.answer(status, body, told | {"content-type": "application/xml"})
        return True

    return fault


def cut(handler: Handler) -> bool:
    """Take half of the body, then reset the connection."""
    handler.rfile.read(int(handler.headers["Content-Length"]) // 2)
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True
    return True


def slow(handler: Handler) -> bool:
    """Take the body in ten sips."""
    length = int(handler.headers["Content-Length"])
    sips = []
    for start in range(0, length, length // 10):
        sips.append(handler.rfile.read(min(length // 10, length - start)))
        time.sleep(0.05)
    handler.hand_on(b"".join(sips))
    return True


def stall(handler: Handler) -> bool:
    """Take the body and say nothing for longer than the client waits."""
    handler.body()
    time.sleep(1.5)
    handler.close_connection = True
    return True


def change(handler: Handler) -> bool:
    """Let another byte than the last arrive."""
    handler.hand_on(handler.body()[:-1] + b"!")
    return True


def shorten(handler: Handler) -> bool:
    """Say that the file is shorter than it was."""
    handler.hand_on(b"", {"content-length": "10"})
    return True


def told(**headers: str) -> Fault:
    """Put other headers into the store's answer."""

    def fault(handler: Handler) -> bool:
        handler.hand_on(handler.body(), {name.replace("_", "-"): value for name, value in headers.items()})
        return True

    return fault


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a store in a process of its own: bucket films is in us-east-1, abroad in eu-west-1."""
    pytest.importorskip("moto")
    port = free_port()
    log = (tmp_path_factory.mktemp("moto") / "log").open("wb")
    words = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with log, subprocess.Popen(words, stdout=log, stderr=log) as process:
        while process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        for name, region in (("films", "us-east-1"), ("abroad", "eu-west-1")):
            scope = f"AWS4-HMAC-SHA256 Credential=test/20260101/{region}/s3/aws4_request"
            tag = "CreateBucketConfiguration"
            place = f"<{tag}><LocationConstraint>{region}</LocationConstraint></{tag}>" if name == "abroad" else ""
            connection.request("PUT", f"/{name}", place, {"Authorization": scope})
            answer = connection.getresponse()
            assert answer.status == 200, answer.read()
            answer.read()
        connection.close()
        yield port
        process.terminate()


@pytest.fixture
def proxy(store: int) -> Iterator[Proxy]:
    with Proxy(store) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield server
        server.shutdown()


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of this machine's own, and keys under RunPod's names."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "BUCKET_", "S3_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("BUCKET_ACCESS_KEY_ID", KEY_ID)
    monkeypatch.setenv("BUCKET_SECRET_ACCESS_KEY", SECRET)


@pytest.fixture
def config(proxy: Proxy, tmp_path: Path) -> S3Config:
    """Small patience: two attempts, of up to three tries each."""
    return S3Config(
        bucket="films",
        region="us-east-1",
        endpoint_url=proxy.url,
        attempts=2,
        backoff=0.01,
        timeout=20,
        keep_folder=str(tmp_path / "kept"),
    )


def artifact(tmp_path: Path, content: bytes = VIDEO, filename: str | None = "a.mp4") -> Artifact:
    path = tmp_path / "made.mp4"
    path.write_bytes(content)
    return Artifact(path, "video/mp4", 4.0, 100, filename=filename)


def fetch(address: str) -> tuple[bytes, str]:
    with urllib.request.urlopen(address, timeout=20) as answer:
        return answer.read(), answer.headers["Content-Type"]


def stored(proxy: Proxy, key: str, bucket: str = "films") -> bytes | None:
    connection = http.client.HTTPConnection("127.0.0.1", proxy.store, timeout=20)
    connection.request(
        "GET", f"/{bucket}/{key}", headers={"Authorization": "AWS4-HMAC-SHA256 Credential=test/x/y/s3/z"}
    )
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return content if answer.status == 200 else None


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def failure(call: Callable[[], Any]) -> SinkError:
    with pytest.raises(SinkError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return caught.value


# --- a good day -------------------------------------------------------------------------------------------------------


def test_plugin_offers_its_sink() -> None:
    manager = pluggy.PluginManager("multitalk_engine")
    manager.add_hookspecs(hookspecs)
    manager.register(plugin)
    register: Register[Sink] = Register("sink")

    manager.hook.register_sinks(register=register)

    sink = register.build(S3Config(bucket="films", region=None, endpoint_url=None))
    assert isinstance(sink, S3Sink)
    assert isinstance(sink, JobSink)


def test_config_reads_its_place_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"S3_BUCKET": "b", "AWS_REGION": "r", "BUCKET_ENDPOINT_URL": "u", "MODEL_PATH": "/m"}.items():
        monkeypatch.setenv(name, value)

    config = OmegaConf.to_object(OmegaConf.structured(S3Config))

    assert isinstance(config, S3Config)
    assert (config.bucket, config.region, config.endpoint_url, config.volume) == ("b", "r", "u", "/m")


def test_config_holds_no_keys() -> None:
    text = OmegaConf.to_yaml(OmegaConf.structured(S3Config), resolve=True)

    assert not [sentinel for sentinel in SENTINELS if sentinel in text]


def test_a_rehearsal_leaves_nothing_behind(config: S3Config, proxy: Proxy) -> None:
    S3Sink(config).rehearse()

    put, taken = ([seen.split()[1] for seen in proxy.seen if seen.startswith(verb)] for verb in ("PUT", "DELETE"))
    (path,) = (part.partition("?")[0] for part in put)
    assert taken[0].partition("?")[0] == path
    assert path.startswith("/films/videos/multitalk-doctor-")
    assert stored(proxy, path.removeprefix("/films/")) is None


def test_a_rehearsal_says_what_the_keys_may_not_do(config: S3Config, proxy: Proxy) -> None:
    proxy.always["DELETE"] = refuse(403, "AccessDenied")

    error = failure(S3Sink(config).rehearse)

    assert error.code == "s3_credentials_refused"
    assert not [sentinel for sentinel in SENTINELS if sentinel in str(error)]


def test_video_arrives_and_the_address_plays_it(config: S3Config, proxy: Proxy, tmp_path: Path) -> None:
    sink = S3Sink(config).for_job("job-1", None)
    given = artifact(tmp_path)

    sink.check("a.mp4")
    kept = sink.put(given)

    assert kept.content is None
    assert fetch(kept.address) == (VIDEO, "video/mp4")
    assert stored(proxy, "videos/job-1/a.mp4") == VIDEO
    assert not given.path.exists()
    assert names(tmp_path / "kept") == []


def test_long_video_goes_up_in_parts(
    config: S3Config, proxy: Proxy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "plugins")

    S3Sink(config).for_job("job-long", None).put(artifact(tmp_path, LONG_VIDEO))

    assert sum("partNumber=" in seen for seen in proxy.seen) == 2
    assert stored(proxy, "videos/job-long/a.mp4") == LONG_VIDEO
    assert "SHA-256 compared" in caplog.text


@pytest.mark.parametrize("content", [VIDEO, LONG_VIDEO], ids=["whole", "parts"])
def test_store_without_checksums_is_compared_by_etag(
    content: bytes, config: S3Config, proxy: Proxy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "plugins")

    S3Sink(replace(config, checksum=False)).for_job("job-etag", None).put(artifact(tmp_path, content))

    assert "ETag compared" in caplog.text
    assert not [name for sent in proxy.headers for name in sent if "checksum" in name.lower()]


def test_key_is_the_same_for_the_same_job_and_for_the_same_video(
    config: S3Config, proxy: Proxy, tmp_path: Path
) -> None:
    digest = hashlib.sha256(VIDEO).hexdigest()
    sink = S3Sink(replace(config, prefix="/a/b/"))

    sink.put(artifact(tmp_path, filename=None))
    sink.for_job("job-2", None).put(artifact(tmp_path, b"first"))
    sink.for_job("job-2", None).put(artifact(tmp_path, b"second"))

    assert stored(proxy, f"a/b/{digest[:16]}/talk.mp4") == VIDEO
    assert stored(proxy, "a/b/job-2/a.mp4") == b"second"


def test_address_lives_as_long_as_asked(config: S3Config, tmp_path: Path) -> None:
    kept = S3Sink(replace(config, url_seconds=77)).put(artifact(tmp_path))

    assert parse_qs(urlsplit(kept.address).query)["X-Amz-Expires"] == ["77"]


def test_public_address_follows_its_template(config: S3Config, tmp_path: Path) -> None:
    sink = S3Sink(replace(config, public_url="https://cdn.example.com/{bucket}/{region}/{key}"))

    kept = sink.for_job("job-3", None).put(artifact(tmp_path, filename="ä b.mp4"))

    assert kept.address == "https://cdn.example.com/films/us-east-1/videos/job-3/%C3%A4%20b.mp4"


def test_acl_and_storage_class_are_sent(config: S3Config, proxy: Proxy, tmp_path: Path) -> None:
    S3Sink(replace(config, acl="public-read", storage_class="STANDARD_IA")).put(artifact(tmp_path))

    (sent,) = [sent for seen, sent in zip(proxy.seen, proxy.headers, strict=True) if seen.startswith("PUT")]
    assert (sent["x-amz-acl"], sent["x-amz-storage-class"]) == ("public-read", "STANDARD_IA")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("url_seconds", 7 * 24 * 3600 + 1),
        ("url_seconds", 0),
        ("attempts", 0),
        ("backoff", -1.0),
        ("timeout", 0.0),
        ("addressing", "host"),
        ("public_url", "https://a/{name}"),
        ("public_url", "https://a/{"),
    ],
)
def test_values_nobody_can_mean_are_config_errors(field: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        S3Sink(replace(S3Config(), **{field: value}))  # type: ignore[arg-type]
    assert caught.value.field == f"sink.{field}"
    assert caught.value.hint


@pytest.mark.parametrize("job", ["", "..", "a/b", ".hidden", "a b", "ä", "a" * 129])
def test_job_name_that_is_no_part_of_a_key_is_refused(job: str, config: S3Config) -> None:
    with pytest.raises(RequestError) as caught:
        S3Sink(config).for_job(job, None)
    assert caught.value.field == "request.job"


@pytest.mark.parametrize(
    ("name", "endpoint", "found"),
    [
        (
            "films",
            "https://films.s3.eu-west-1.amazonaws.com",
            ("films", "https://s3.eu-west-1.amazonaws.com", "eu-west-1"),
        ),
        (
            "",
            "https://my.films.s3.eu-west-1.amazonaws.com",
            ("my.films", "https://s3.eu-west-1.amazonaws.com", "eu-west-1"),
        ),
        ("films", "https://films.nyc3.digitaloceanspaces.com", ("films", "https://nyc3.digitaloceanspaces.com", None)),
        ("films", "https://nyc3.digitaloceanspaces.com", ("films", "https://nyc3.digitaloceanspaces.com", None)),
        ("storage", "https://storage.googleapis.com", ("storage", "https://storage.googleapis.com", None)),
        ("films", "http://minio:9000", ("films", "http://minio:9000", None)),
        ("films", None, ("films", None, None)),
    ],
)
def test_endpoint_with_the_bucket_in_its_host_is_understood(
    name: str, endpoint: str | None, found: tuple[str, str | None, str | None]
) -> None:
    bucket = Bucket(name, endpoint_url=endpoint)

    assert (bucket.name, bucket.endpoint_url, bucket.region) == found


# --- a job's own bucket -----------------------------------------------------------------------------------------------


def own_store(proxy: Proxy, bucket: str = "films") -> Store:
    return Store(bucket, Credentials(OWN_KEY_ID, OWN_SECRET, TOKEN, endpoint=proxy.url, region="us-east-1"))


def test_job_uploads_with_its_own_keys_to_its_own_bucket(config: S3Config, proxy: Proxy, tmp_path: Path) -> None:
    elsewhere = replace(
        config, bucket="other", endpoint_url="http://127.0.0.1:1", acl="public-read", public_url="x{key}"
    )
    sink = S3Sink(elsewhere).for_job("job-own", own_store(proxy))

    sink.check(None)
    kept = sink.put(artifact(tmp_path))

    assert fetch(kept.address) == (VIDEO, "video/mp4")
    assert stored(proxy, "videos/job-own/a.mp4") == VIDEO
    signed = [sent["Authorization"] for sent in proxy.headers if "Authorization" in sent]
    assert signed
    assert all(f"Credential={OWN_KEY_ID}/" in line for line in signed)
    assert not [sent for sent in proxy.headers if "x-amz-acl" in sent]


def test_own_keys_of_a_job_are_asked_for_by_the_name_of_its_field(config: S3Config, proxy: Proxy) -> None:
    sink = S3Sink(config).for_job("job-own", own_store(proxy, "gone"))

    error = failure(lambda: sink.check(None))

    assert (error.code, error.field) == ("s3_bucket_missing", "request.store")


def test_kept_video_of_a_job_with_its_own_bucket_goes_nowhere_else(
    config: S3Config, proxy: Proxy, tmp_path: Path
) -> None:
    sink = S3Sink(config)
    proxy.always["PUT"] = refuse(400, "ExpiredToken")
    failure(lambda: sink.for_job("job-own-2", own_store(proxy)).put(artifact(tmp_path)))
    proxy.always.clear()

    error = failure(lambda: sink.resume("job-own-2"))
    assert "own bucket" in str(error)
    assert stored(proxy, "videos/job-own-2/a.mp4") is None

    sink.for_job("job-own-2", own_store(proxy)).resume("job-own-2")
    assert stored(proxy, "videos/job-own-2/a.mp4") == VIDEO
    assert names(tmp_path / "kept") == []


# --- before any work --------------------------------------------------------------------------------------------------


def test_no_bucket_is_told_before_any_work(config: S3Config) -> None:
    error = failure(lambda: S3Sink(replace(config, bucket="")).check(None))

    assert (error.code, error.field) == ("s3_bucket_missing", "sink.bucket")
    assert "S3_BUCKET" in error.hint


@pytest.mark.parametrize("probe", [True, False])
def test_no_credentials_are_told_before_any_work(
    probe: bool, config: S3Config, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BUCKET_ACCESS_KEY_ID")
    monkeypatch.delenv("BUCKET_SECRET_ACCESS_KEY")

    error = failure(lambda: S3Sink(replace(config, probe=probe)).check(None))

    assert error.code == "s3_no_credentials"
    assert "AWS_ACCESS_KEY_ID" in error.hint
    assert proxy.seen == []


def test_half_of_the_credentials_is_told_by_what_is_missing(config: S3Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BUCKET_SECRET_ACCESS_KEY")

    error = failure(lambda: S3Sink(config).check(None))

    assert error.code == "s3_no_credentials"
    assert "lack BUCKET_SECRET_ACCESS_KEY" in str(error)


def test_amazons_names_of_the_keys_work_too(config: S3Config, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    for ours, theirs in (("KEY_ID", "AWS_ACCESS_KEY_ID"), ("KEY", "AWS_SECRET_ACCESS_KEY")):
        monkeypatch.delenv("BUCKET_ACCESS_KEY_ID" if ours == "KEY_ID" else "BUCKET_SECRET_ACCESS_KEY")
        monkeypatch.setenv(theirs, "amazons")

    S3Sink(config).check(None)

    assert "Credential=amazons/" in proxy.headers[0]["Authorization"]


def test_missing_bucket_is_told_before_any_work(config: S3Config) -> None:
    error = failure(lambda: S3Sink(replace(config, bucket="gone")).check(None))

    assert (error.code, error.field) == ("s3_bucket_missing", "sink.bucket")
    assert "'gone'" in str(error)


def test_name_that_no_bucket_can_have_is_a_missing_bucket(config: S3Config) -> None:
    assert failure(lambda: S3Sink(replace(config, bucket="a/b c")).check(None)).code == "s3_bucket_missing"


def test_wrong_region_is_told_with_the_right_one(config: S3Config) -> None:
    error = failure(lambda: S3Sink(replace(config, bucket="abroad")).check(None))

    assert (error.code, error.field) == ("s3_wrong_region", "sink.region")
    assert "is in eu-west-1, not us-east-1" in str(error)
    S3Sink(replace(config, bucket="abroad", region="eu-west-1")).check(None)


def test_region_that_cannot_be_one_is_told(config: S3Config) -> None:
    assert failure(lambda: S3Sink(replace(config, region="eu west")).check(None)).code == "s3_wrong_region"


def test_redirect_to_another_region_is_told_with_the_right_one(config: S3Config, proxy: Proxy) -> None:
    proxy.always["HEAD"] = refuse(301, "PermanentRedirect", x_amz_bucket_region="ap-south-1")

    error = failure(lambda: S3Sink(config).check(None))

    assert error.code == "s3_wrong_region"
    assert "ap-south-1" in str(error)


@pytest.mark.parametrize(
    ("status", "reason", "code"),
    [
        (403, "AccessDenied", "s3_credentials_refused"),
        (403, "InvalidAccessKeyId", "s3_credentials_refused"),
        (403, "SignatureDoesNotMatch", "s3_credentials_refused"),
        (403, "RequestTimeTooSkewed", "s3_credentials_refused"),
        (400, "ExpiredToken", "s3_token_expired"),
        (400, "InvalidToken", "s3_credentials_refused"),
    ],
)
def test_refusal_is_told_by_its_reason_before_any_work(
    status: int, reason: str, code: str, config: S3Config, proxy: Proxy
) -> None:
    proxy.always |= {"HEAD": refuse(status, reason), "GET": refuse(status, reason)}

    error = failure(lambda: S3Sink(config).check(None))

    assert error.code == code
    assert code == "s3_token_expired" or f"({reason})" in str(error)
    assert error.hint


def test_refused_listing_does_not_matter_without_the_probe(config: S3Config, proxy: Proxy, tmp_path: Path) -> None:
    proxy.once("HEAD", refuse(403, "AccessDenied"))
    sink = S3Sink(replace(config, probe=False))

    sink.check(None)
    assert proxy.seen == []
    proxy.faults.clear()
    assert fetch(sink.put(artifact(tmp_path)).address)[0] == VIDEO


def test_store_that_nobody_answers_at_is_told_before_any_work(config: S3Config) -> None:
    error = failure(lambda: S3Sink(replace(config, endpoint_url=f"http://127.0.0.1:{free_port()}")).check(None))

    assert (error.code, error.field) == ("s3_unreachable", "sink.endpoint_url")
    assert "127.0.0.1" in str(error)


@pytest.mark.parametrize("endpoint", ["films.example.com", "http://[", "ftp://", "http://a b", "http://a:b@c"])
def test_endpoint_that_is_no_url_is_told_before_any_work(endpoint: str, config: S3Config) -> None:
    error = failure(lambda: S3Sink(replace(config, endpoint_url=endpoint, attempts=1)).check(None))

    assert (error.code, error.field) == ("s3_unreachable", "sink.endpoint_url")


def test_short_trouble_at_the_check_is_sat_out(config: S3Config, proxy: Proxy) -> None:
    proxy.once("HEAD", *[refuse(503, "ServiceUnavailable")] * 4)

    S3Sink(config).check(None)

    assert proxy.count("HEAD") == 5


def test_nowhere_to_keep_a_video_is_told_before_any_work(config: S3Config, tmp_path: Path, proxy: Proxy) -> None:
    (tmp_path / "file").touch()

    error = failure(lambda: S3Sink(replace(config, keep_folder=str(tmp_path / "file" / "kept"))).check(None))

    assert (error.code, error.field) == ("s3_no_keep_folder", "sink.keep_folder")
    assert proxy.seen == []


# --- bad days ---------------------------------------------------------------------------------------------------------


def test_storm_of_503_is_sat_out(config: S3Config, proxy: Proxy, tmp_path: Path) -> None:
    proxy.once("PUT", *[refuse(503, "ServiceUnavailable")] * 5)

    S3Sink(config).for_job("job-storm", None).put(artifact(tmp_path))

    assert proxy.count("PUT") == 6
    assert stored(proxy, "videos/job-storm/a.mp4") == VIDEO


def test_storm_in_one_part_is_sat_out(config: S3Config, proxy: Proxy, tmp_path: Path) -> None:
    proxy.once("PUT", *[refuse(503, "ServiceUnavailable")] * 2)

    S3Sink(config).for_job("job-part", None).put(artifact(tmp_path, LONG_VIDEO))

    assert stored(proxy, "videos/job-part/a.mp4") == LONG_VIDEO


def test_waits_grow_and_are_random(
    config: S3Config, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[float, float]] = []
    waits: list[float] = []

    def uniform(low: float, high: float) -> float:
        asked.append((low, high))
        return high / 4

    monkeypatch.setattr(random, "uniform", uniform)
    monkeypatch.setattr(time, "sleep", waits.append)
    sink = S3Sink(replace(config, attempts=8, backoff=1.0))
    passing = Trouble("s3_unreachable", "busy", passing=True)

    assert sink._patiently(lambda: passing) is passing
    assert asked == [(0, 1), (0, 2), (0, 4), (0, 8), (0, 16), (0, 30), (0, 30)]
    assert waits == [high / 4 for _, high in asked]


def test_endless_storm_keeps_the_video_until_it_is_resumed(config: S3Config, proxy: Proxy, tmp_path: Path) -> None:
    proxy.always["PUT"] = refuse(503, "ServiceUnavailable")
    sink = S3Sink(config)

    error = failure(lambda: sink.for_job("job-4", None).put(artifact(tmp_path)))

    assert isinstance(error, NotDelivered)
    assert (error.code, error.job) == ("s3_upload_failed", "job-4")
    assert Path(error.path).read_bytes() == VIDEO
    assert "kept" in str(error)
    assert "resume job job-4" in str(error)
    assert proxy.count("PUT") == 6
    assert names(tmp_path / "kept") == ["job-4.json", "job-4.mp4"]

    proxy.always.clear()
    kept = sink.resume("job-4")

    assert fetch(kept.address) == (VIDEO, "video/mp4")
    assert stored(proxy, "videos/job-4/a.mp4") == VIDEO
    assert names(tmp_path / "kept") == []


def test_remote_caller_is_not_told_where_the_video_waits(config: S3Config, proxy: Proxy, tmp_path: Path) -> None:
    proxy.always["PUT"] = refuse(403, "AccessDenied")

    error = failure(lambda: S3Sink(config).for_job("job-5", None).put(artifact(tmp_path)))

    shown = "".join(traceback.format_exception(error)[-1:]) + str(error) + repr(error) + str(error.args)
    assert str(tmp_path) not in shown


def test_resume_that_fails_keeps_the_video(config: S3Config, proxy: Proxy, tmp_path: Path) -> None:
    proxy.always["PUT"] = refuse(403, "AccessDenied")
    sink = S3Sink(config)
    failure(lambda: sink.for_job("job-6", None).put(artifact(tmp_path)))

    error = failure(lambda: sink.resume("job-6"))

    assert (error.code, type(error)) == ("s3_credentials_refused", NotDelivered)
    assert (tmp_path / "kept" / "job-6.mp4").read_bytes() == VIDEO
    proxy.always.clear()
    sink.resume("job-6")
    assert names(tmp_path / "kept") == []


def test_video_without_a_job_is_resumed_by_the_name_that_is_told(
    config: S3Config, proxy: Proxy, tmp_path: Path
) -> None:
    proxy.always["PUT"] = refuse(403, "AccessDenied")
    sink = S3Sink(config)
    error = failure(lambda: sink.put(artifact(tmp_path)))
    proxy.always.clear()

    assert isinstance(error, NotDelivered)
    sink.resume(error.job)

    assert stored(proxy, f"videos/{hashlib.sha256(VIDEO).hexdigest()[:16]}/a.mp4") == VIDEO


def test_job_that_is_made_again_clears_what_waited(config: S3Config, proxy: Proxy, tmp_path: Path) -> None:
    sink = S3Sink(config).for_job("job-7", None)
    proxy.always["PUT"] = refuse(403, "AccessDenied")
    failure(lambda: sink.put(artifact(tmp_path)))
    proxy.always.clear()

    sink.put(artifact(tmp_path, b"made again"))

    assert stored(proxy, "videos/job-7/a.mp4") == b"made again"
    assert names(tmp_path / "kept") == []


@pytest.mark.parametrize("job", ["never-was", "../kept/job", ""])
def test_nothing_to_resume_is_an_error(job: str, config: S3Config) -> None:
    assert failure(lambda: S3Sink(config).resume(job)).code == "s3_nothing_kept"


@pytest.mark.parametrize("note", ["", "[]", "{}", None])
def test_video_without_a_whole_note_is_not_resumed(note: str | None, config: S3Config, tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "job-8.mp4").write_bytes(VIDEO)
    if note is not None:
        (tmp_path / "kept" / "job-8.json").write_text(note)

    assert failure(lambda: S3Sink(config).resume("job-8")).code == "s3_nothing_kept"


def test_video_is_kept_on_the_volume_where_there_is_one(config: S3Config, proxy: Proxy, tmp_path: Path) -> None:
    proxy.always["PUT"] = refuse(403, "AccessDenied")
    volume = tmp_path / "volume"
    sink = S3Sink(replace(config, keep_folder=None, volume=str(volume)))

    failure(lambda: sink.for_job("job-9", None).put(artifact(tmp_path)))
    assert names(tmp_path / "home" / "multitalk-undelivered") == ["job-9.json", "job-9.mp4"]
    assert not volume.exists()

    volume.mkdir()
    failure(lambda: sink.for_job("job-10", None).put(artifact(tmp_path)))
    assert names(volume / "undelivered") == ["job-10.json", "job-10.mp4"]

    proxy.always.clear()
    for job in ("job-9", "job-10"):
        sink.resume(job)
        assert stored(proxy, f"videos/{job}/a.mp4") == VIDEO


def test_video_that_can_neither_go_nor_stay_is_told(config: S3Config, proxy: Proxy, tmp_path: Path) -> None:
    proxy.always["PUT"] = refuse(403, "AccessDenied")
    (tmp_path / "file").touch()
    sink = S3Sink(replace(config, keep_folder=str(tmp_path / "file" / "kept")))

    error = failure(lambda: sink.put(artifact(tmp_path)))

    assert not isinstance(error, NotDelivered)
    assert error.code == "s3_credentials_refused"
    assert "could not be kept" in str(error)


def test_connection_cut_in_the_middle_is_tried_again(config: S3Config, proxy: Proxy, tmp_path: Path) -> None:
    proxy.once("PUT", cut, cut, cut, cut)

    S3Sink(config).for_job("job-cut", None).put(artifact(tmp_path))

    assert proxy.count("PUT") == 5
    assert stored(proxy, "videos/job-cut/a.mp4") == VIDEO


def test_slow_store_is_waited_for(config: S3Config, proxy: Proxy, tmp_path: Path) -> None:
    proxy.once("PUT", slow)

    S3Sink(config).for_job("job-slow", None).put(artifact(tmp_path))

    assert proxy.count("PUT") == 1
    assert stored(proxy, "videos/job-slow/a.mp4") == VIDEO


def test_silent_store_is_tried_again(config: S3Config, proxy: Proxy, tmp_path: Path) -> None:
    proxy.once("PUT", stall)

    S3Sink(replace(config, timeout=0.7)).for_job("job-stall", None).put(artifact(tmp_path))

    assert proxy.count("PUT") >= 2
    assert stored(proxy, "videos/job-stall/a.mp4") == VIDEO


@pytest.mark.parametrize(
    ("status", "reason", "code"),
    [
        (400, "ExpiredToken", "s3_token_expired"),
        (403, "InvalidAccessKeyId", "s3_credentials_refused"),
        (404, "NoSuchBucket", "s3_bucket_missing"),
        (400, "AccessControlListNotSupported", "s3_refused"),
        (501, "NotImplemented", "s3_refused"),
        (400, f"{SECRET} <&>", "s3_refused"),
    ],
)
def test_refusal_that_stays_is_not_tried_again(
    status: int, reason: str, code: str, config: S3Config, proxy: Proxy, tmp_path: Path
) -> None:
    proxy.always["PUT"] = refuse(status, reason)

    error = failure(lambda: S3Sink(config).put(artifact(tmp_path)))

    assert (error.code, type(error)) == (code, NotDelivered)
    assert not error.hint.startswith(";")
    assert proxy.count("PUT") == 1


def test_bytes_that_changed_on_the_way_are_sent_again(config: S3Config, proxy: Proxy, tmp_path: Path) -> None:
    proxy.once("PUT", change)

    S3Sink(replace(config, checksum=False)).for_job("job-changed", None).put(artifact(tmp_path))

    assert proxy.count("PUT") == 2
    assert stored(proxy, "videos/job-changed/a.mp4") == VIDEO


@pytest.mark.parametrize(
    ("fault", "word"),
    [
        (told(x_amz_checksum_sha256=base64.b64encode(b"0" * 32).decode()), "SHA-256"),
        (shorten, "size"),
    ],
)
def test_video_that_arrives_otherwise_is_not_called_delivered(
    fault: Fault, word: str, config: S3Config, proxy: Proxy, tmp_path: Path
) -> None:
    proxy.always["HEAD"] = fault

    error = failure(lambda: S3Sink(config).put(artifact(tmp_path)))

    assert (error.code, type(error)) == ("s3_upload_failed", NotDelivered)
    assert f"its {word} differs" in str(error)
    assert proxy.count("PUT") == 2


def test_missing_file_is_a_sink_error(config: S3Config, tmp_path: Path) -> None:
    given = artifact(tmp_path)
    given.path.unlink()

    assert "read back" in str(failure(lambda: S3Sink(config).put(given)))


# --- secrets ----------------------------------------------------------------------------------------------------------


def shown(error: BaseException | None) -> Iterator[str]:
    """Yield all texts of an error and of those behind it that a traceback would show."""
    while error is not None:
        yield from (str(error), repr(error), repr(vars(error)), *traceback.format_exception(error))
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def test_no_secret_is_told(
    config: S3Config,
    proxy: Proxy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("AWS_SESSION_TOKEN", TOKEN)
    secret_endpoint = f"http://user:{SECRET}@127.0.0.1:{free_port()}/?{TOKEN}"
    texts: list[str] = []
    for number, own in enumerate((None, own_store(proxy))):
        sink = S3Sink(config).for_job(f"job-secret-{number}", own)
        sink.check(None)
        kept = sink.put(artifact(tmp_path))
        assert "X-Amz-Signature" in kept.address
        texts += [repr(kept), repr(sink), repr(own), repr(vars(sink)["_bucket"])]
        for method, fault, content in (
            ("PUT", refuse(403, "SignatureDoesNotMatch"), VIDEO),
            ("PUT", refuse(400, f"{SECRET}+{KEY_ID}"), VIDEO),
            ("PUT", refuse(503, "ServiceUnavailable"), VIDEO),
            ("PUT", cut, LONG_VIDEO),
            ("HEAD", refuse(403, "InvalidAccessKeyId"), VIDEO),
        ):
            proxy.always = {method: fault}
            texts += shown(failure(partial(sink.put, artifact(tmp_path, content))))
        texts += shown(failure(partial(sink.check, None)))
        proxy.always = {}
        texts += [path.read_text() for path in (tmp_path / "kept").glob("*.json")]
        sink.resume(f"job-secret-{number}")
    texts += shown(failure(lambda: S3Sink(replace(config, endpoint_url=secret_endpoint)).check(None)))
    texts += shown(failure(lambda: S3Sink(replace(config, endpoint_url=f"http://[{SECRET}")).check(None)))

    forbidden = re.compile("|".join((*SENTINELS, "X-Amz-", "uploadId=", "partNumber=")))
    assert len(texts) > 40
    assert not [text for text in texts if forbidden.search(text)]
    ours = [record for record in caplog.records if record.name.startswith(("engine", "plugins"))]
    assert len(ours) > 10
    assert not [record for record in ours if forbidden.search(record.getMessage() + repr(record.args))]
    # The libraries' records at DEBUG have queries and what the store says, as docs/errors.md says; but no key.
    keys = re.compile("|".join((TOKEN, OWN_SECRET, OWN_KEY_ID, "X-Amz-Signature")))
    assert {record.name for record in caplog.records if keys.search(record.getMessage())} == set()


def test_every_code_stands_in_the_documents() -> None:
    table = (Path(__file__).parent.parent / "docs" / "errors.md").read_text("utf-8")
    sources = [Path(str(module.__file__)).read_text("utf-8") for module in (plugin, sys.modules["engine.buckets"])]
    codes = set(re.findall(r'"(s3_[a-z0-9_]+)"', "".join(sources)))

    assert len(codes) > 8
    assert not [code for code in codes if f"`{code}`" not in table]


def test_looking_at_the_sink_does_not_import_boto3() -> None:
    code = (
        "import sys, plugins.sinks.s3; print('boto3' in sys.modules, 'botocore' in sys.modules, 'torch' in sys.modules)"
    )
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.split() == ["False"] * 3


def test_errors_are_json_for_a_remote_caller(config: S3Config) -> None:
    error: EngineError = failure(lambda: S3Sink(replace(config, bucket="gone")).check(None))

    assert json.loads(json.dumps({"code": error.code, "field": error.field, "hint": error.hint}))["code"]
