"""A server on loopback that speaks the hub's protocol for downloads, and a content network that it sends to.

Large files are LFS: the hub answers with a redirect, their size and SHA-256 in `X-Linked-*`; the network serves ranges.
Small ones the hub serves itself, with git's SHA-1 as ETag. Every fault is one that a real server or line has.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

import yaml

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SIGNATURE = "c0ffee5ecre7"
#: From this size on a file is LFS.
LARGE = 1000


@dataclass
class Fault:
    """What happens to one request of the content network."""

    #: Answer with this status in place of the file.
    status: int = 0
    retry_after: int = 0
    #: Close the connection after so many bytes of the body.
    cut: int | None = None
    #: Send nothing for so many seconds after `cut` bytes, then close.
    stall: float = 0.0
    #: Ignore a Range header.
    whole: bool = False


@dataclass
class Asked:
    """A request, as it came."""

    server: str
    method: str
    path: str
    range: str
    authorization: str
    status: int = 0
    sent: int = 0


@dataclass
class HubServer:
    """Repositories by name, path and content."""

    files: dict[str, dict[str, bytes]]
    #: By SHA-256, taken from the front.
    faults: dict[str, list[Fault]] = field(default_factory=dict)
    #: Answers of the hub itself, taken from the front: a status each.
    refusals: list[int] = field(default_factory=list)
    #: Bytes a second of each connection; 0: as fast as it goes.
    rate: int = 0
    asked: list[Asked] = field(default_factory=list)
    #: (repository, path) -> a size the hub states in place of the real one.
    sizes: dict[tuple[str, str], int] = field(default_factory=dict)
    hub: str = ""
    cdn: str = ""

    def blob(self, sha256: str) -> bytes:
        for files in self.files.values():
            for content in files.values():
                if hashlib.sha256(content).hexdigest() == sha256:
                    return content
        raise KeyError(sha256)

    def sent(self) -> int:
        """Return how many bytes of large files went out."""
        return sum(asked.sent for asked in self.asked if asked.server == "cdn")

    def manifest(self, **presets: list[str]) -> dict[str, Any]:
        """Return a manifest in which each repository is a part of the last half of its name."""
        parts = {
            repository.partition("/")[2]: {
                "repository": repository,
                "files": [{"path": path, "about": len(content)} for path, content in files.items()],
            }
            for repository, files in self.files.items()
        }
        repositories = {name: {"revision": COMMIT, "licence": "MIT"} for name in self.files}
        return {
            "default": next(iter(presets)),
            "repositories": repositories,
            "parts": parts,
            "presets": {
                name: {"about": name, "folder": name.partition("_")[0], "use": f"model={name}", "parts": chosen}
                for name, chosen in presets.items()
            },
        }


def write_manifest(path: Any, table: dict[str, Any]) -> Any:
    path.write_text(yaml.safe_dump(table, sort_keys=False), "utf-8")
    return path


def _git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _handler(server: HubServer, answer: Callable[[BaseHTTPRequestHandler, Asked], None], name: str) -> Any:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._serve()

        def do_HEAD(self) -> None:
            self._serve()

        def _serve(self) -> None:
            asked = Asked(
                name,
                self.command,
                self.path,
                self.headers.get("Range", ""),
                self.headers.get("Authorization", ""),
            )
            server.asked.append(asked)
            # The client may hang up at any time: that is what many tests are about.
            with suppress(OSError):
                answer(self, asked)

        def log_message(self, *_: Any) -> None: ...

    return Handler


def _start(handler: BaseHTTPRequestHandler, asked: Asked, status: int, headers: dict[str, Any]) -> None:
    asked.status = status
    handler.send_response(status)
    for key, value in {"Date": formatdate(usegmt=True), **headers}.items():
        handler.send_header(key, str(value))
    handler.end_headers()


@contextmanager
def hub_server(files: dict[str, dict[str, bytes]], **settings: Any) -> Iterator[HubServer]:
    """Serve repositories on two free ports of loopback, under two host names, until the `with` ends."""
    server = HubServer(files, **settings)

    def hub(handler: BaseHTTPRequestHandler, asked: Asked) -> None:
        headers: dict[str, Any]
        if server.refusals:
            status = server.refusals.pop(0)
            if status:
                headers = {"Retry-After": 0} if status == 429 else {}
                return _start(handler, asked, status, {"Content-Length": 0, **headers})
        repository, _, rest = handler.path.lstrip("/").partition("/resolve/")
        revision, _, path = rest.partition("/")
        content = server.files.get(repository, {}).get(unquote(path))
        if content is None or unquote(revision) not in (COMMIT, "main"):
            code = "RepoNotFound" if repository not in server.files else "EntryNotFound"
            return _start(handler, asked, 404, {"Content-Length": 0, "X-Error-Code": code})
        size = server.sizes.get((repository, unquote(path)), len(content))
        if len(content) < LARGE:
            headers = {"ETag": f'"{_git_sha1(content)}"', "X-Repo-Commit": COMMIT, "Content-Length": len(content)}
            begin = int(asked.range.removeprefix("bytes=").partition("-")[0] or 0) if asked.range else 0
            if begin:
                headers |= {"Content-Range": f"bytes {begin}-{size - 1}/{size}", "Content-Length": size - begin}
            _start(handler, asked, 206 if begin else 200, headers)
            if asked.method == "GET":
                handler.wfile.write(content[begin:])
            return None
        sha256 = hashlib.sha256(content).hexdigest()
        headers = {"X-Repo-Commit": COMMIT, "X-Linked-Size": size, "X-Linked-ETag": f'"{sha256}"', "Content-Length": 0}
        headers["Location"] = f"{server.cdn}/blobs/{sha256}?X-Amz-Signature={SIGNATURE}"
        return _start(handler, asked, 302, headers)

    def cdn(handler: BaseHTTPRequestHandler, asked: Asked) -> None:
        headers: dict[str, Any]
        sha256 = handler.path.rpartition("/")[2].partition("?")[0]
        waiting = server.faults.get(sha256, [])
        fault = waiting.pop(0) if waiting else Fault()
        if fault.status:
            headers = {"Retry-After": fault.retry_after} if fault.status == 429 else {}
            return _start(handler, asked, fault.status, {"Content-Length": 0, **headers})
        content = server.blob(sha256)
        begin = int(asked.range.removeprefix("bytes=").partition("-")[0]) if asked.range and not fault.whole else 0
        headers = {"Accept-Ranges": "bytes", "Content-Length": len(content) - begin, "ETag": f'"{sha256}"'}
        if asked.range and not fault.whole:
            headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
        _start(handler, asked, 206 if "Content-Range" in headers else 200, headers)
        end = len(content) if fault.cut is None else min(len(content), begin + fault.cut)
        step = max(1, server.rate // 50) if server.rate else 1 << 20
        for place in range(begin, end, step):
            piece = content[place : min(place + step, end)]
            handler.wfile.write(piece)
            asked.sent += len(piece)
            if server.rate:
                time.sleep(len(piece) / server.rate)
        if fault.stall:
            handler.wfile.flush()
            time.sleep(fault.stall)
        if fault.cut is not None:
            handler.close_connection = True
        return None

    with (
        _serving(_handler(server, hub, "hub"), "127.0.0.1") as server.hub,
        _serving(_handler(server, cdn, "cdn"), "localhost") as server.cdn,
    ):
        yield server


class _Quiet(ThreadingHTTPServer):
    """Thinks nothing of a client that is killed."""

    def handle_error(self, *_: Any) -> None: ...


@contextmanager
def _serving(handler: Any, host: str) -> Iterator[str]:
    listening = _Quiet(("127.0.0.1", 0), handler)
    listening.daemon_threads = True
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://{host}:{listening.server_address[1]}"
    finally:
        listening.shutdown()
        listening.server_close()
        thread.join(timeout=5)
