"""A real store that speaks S3, a proxy before it that does harm, and what the tests of it share."""

from __future__ import annotations

import http.client
import socket
import time
import urllib.request
from collections import deque
from collections.abc import Callable
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from engine.data import Artifact, Credentials, Store
from engine.errors import SinkError

VIDEO = bytes(range(256)) * 400
#: In two parts, of which the second is short.
LONG_VIDEO = VIDEO * (9 * 2**20 // len(VIDEO))
SECRET = "sentinel0secret0key"
TOKEN = "sentinel0session0token"
KEY_ID = "SENTINEL0KEY0ID"
OWN_SECRET = "sentinel0own0secret"
OWN_KEY_ID = "SENTINEL0OWN0ID"
SENTINELS = (SECRET, TOKEN, KEY_ID, OWN_SECRET, OWN_KEY_ID)

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


def knows_no_checksums(status: int, code: str) -> Fault:
    """Refuse what carries an additional checksum, or asks for one, as stores do that know none."""

    def fault(handler: Handler) -> bool:
        names = (name.lower() for name in handler.headers)
        asked = any(name.startswith(("x-amz-checksum-", "x-amz-sdk-checksum-", "x-amz-trailer")) for name in names)
        return asked and refuse(status, code)(handler)

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


def artifact(tmp_path: Path, content: bytes = VIDEO, filename: str | None = "a.mp4") -> Artifact:
    path = tmp_path / "made.mp4"
    path.write_bytes(content)
    return Artifact(path, "video/mp4", 4.0, 100, filename=filename)


def fetch(address: str | None) -> tuple[bytes, str]:
    assert address is not None
    with urllib.request.urlopen(address, timeout=20) as answer:
        return answer.read(), answer.headers["Content-Type"]


def stored(proxy: Proxy, key: str, bucket: str = "films") -> bytes | None:
    """Return what lies in the store, asked past the proxy with keys that it knows; None where nothing does."""
    asked = client(proxy.store)
    try:
        content: bytes = asked.get_object(Bucket=bucket, Key=key)["Body"].read()
    except asked.exceptions.NoSuchKey:
        return None
    return content


@cache
def client(port: int) -> Any:
    """Return boto3's client with the keys of these tests; making one takes longer than what most tests ask of it."""
    import boto3

    return boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{port}",
        region_name="us-east-1",
        aws_access_key_id=KEY_ID,
        aws_secret_access_key=SECRET,
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def failure(call: Callable[[], Any]) -> SinkError:
    with pytest.raises(SinkError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return caught.value


#: What lets tests reach a store beside them with keys of a job's own.
HOSTS = ("127.0.0.1",)


def own_store(proxy: Proxy, bucket: str = "films", token: str | None = TOKEN) -> Store:
    return Store(bucket, Credentials(OWN_KEY_ID, OWN_SECRET, token, endpoint=proxy.url, region="us-east-1"))
