"""As much of the platform as one worker sees: hands out jobs, takes results, for benches and tests."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, Any
from urllib.parse import parse_qs, urlsplit

#: Seconds for which a question for a job is held where there is none; RunPod holds it longer.
_HOLD = 2.0


class Platform:
    """Keeps what a worker sends. One job is out at a time."""

    def __init__(self) -> None:
        self.jobs: queue.Queue[dict[str, Any]] = queue.Queue()
        self.stops: queue.Queue[str] = queue.Queue()
        #: What was posted for each job, in order, with the time of its arrival.
        self.posts: dict[str, list[tuple[float, dict[str, Any]]]] = {}
        #: Times and queries of the pings.
        self.pings: list[tuple[float, dict[str, list[str]]]] = []
        #: Set with the first question for a job.
        self.asked = threading.Event()
        self._posted = threading.Condition()
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def environment(self) -> dict[str, str]:
        """Return what the platform gives a worker."""
        root = f"http://127.0.0.1:{self._server.server_port}"
        return {
            "RUNPOD_WEBHOOK_GET_JOB": f"{root}/job-take/$ID?gpu=none",
            "RUNPOD_WEBHOOK_POST_OUTPUT": f"{root}/job-done/$ID?gpu=none",
            "RUNPOD_WEBHOOK_PING": f"{root}/ping/$RUNPOD_POD_ID",
            "RUNPOD_PING_INTERVAL": "1000",
            "RUNPOD_AI_API_KEY": "local",
            "RUNPOD_POD_ID": "worker-1",
            # They ask for 8.8.8.8, and measure the machine, not us.
            "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",
            "RUNPOD_SKIP_GPU_CHECK": "true",
        }

    def send(self, job: str, given: Mapping[str, Any], **beside: Any) -> None:
        """Put a job into the queue."""
        self.jobs.put({"id": job, "input": dict(given), **beside})

    def result(self, job: str, timeout: float) -> dict[str, Any]:
        """Wait for what the worker posts at the job's end. Raises TimeoutError."""
        deadline = time.monotonic() + timeout
        with self._posted:
            while True:
                for _, post in self.posts.get(job, ()):
                    if post.get("status") != "IN_PROGRESS":
                        return post
                if not self._posted.wait(deadline - time.monotonic()):
                    raise TimeoutError(f"no result of job {job} within {timeout:g} s")

    def progress(self, job: str) -> list[tuple[float, dict[str, Any]]]:
        """Return the signs of life that came for a job, with their times."""
        with self._posted:
            posts = list(self.posts.get(job, ()))
        return [(when, post["output"]) for when, post in posts if post.get("status") == "IN_PROGRESS"]

    def note(self, job: str, post: dict[str, Any]) -> None:
        """Keep what the worker posted."""
        with self._posted:
            self.posts.setdefault(job, []).append((time.monotonic(), post))
            self._posted.notify_all()

    def close(self) -> None:
        """Take no more questions."""
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def working(
    platform: Platform, overrides: Sequence[str], *, log: IO[str] | Path, **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `multitalk runpod` with `overrides` in a process of its own while the block runs; `log` takes its output."""
    command = [sys.executable, "-m", "engine", "runpod", *overrides]
    known = {name: value for name, value in os.environ.items() if not name.startswith(("RUNPOD_", "BUCKET_", "S3_"))}
    with log.open("w") if isinstance(log, Path) else log as file:
        process = subprocess.Popen(
            command,
            env={**known, **platform.environment(), **environment},
            stdout=file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a worker that ends cuts its connections."""


def _handler(platform: Platform) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            place = urlsplit(self.path)
            if place.path.startswith("/ping/"):
                platform.pings.append((time.monotonic(), parse_qs(place.query)))
                self._reply({})
            elif place.path.startswith("/job-stop/"):
                stopped = _within(platform.stops)
                self._reply(None if stopped is None else {"jobsToStop": [stopped]})
            else:
                platform.asked.set()
                self._reply(_within(platform.jobs))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            platform.note(urlsplit(self.path).path.rpartition("/")[2], json.loads(body))
            self._reply({})

        def _reply(self, told: Any) -> None:
            body = b"" if told is None else json.dumps(told).encode()
            try:
                self.send_response(204 if told is None else 200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
            except OSError:
                # The worker has hung up: it was told to end.
                self.close_connection = True

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    return Handler


def _within(waiting: queue.Queue[Any]) -> Any:
    try:
        return waiting.get(timeout=_HOLD)
    except queue.Empty:
        return None
