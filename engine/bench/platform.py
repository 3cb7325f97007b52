"""A small replacement of the platform for one worker: sends jobs, receives results; for benches and tests."""

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

#: Seconds that a request for a job waits if there is none; RunPod waits longer.
_HOLD = 2.0


class Platform:
    """Keeps what a worker sends. It sends one job at a time."""

    def __init__(self) -> None:
        self.jobs: queue.Queue[dict[str, Any]] = queue.Queue()
        self.stops: queue.Queue[str] = queue.Queue()
        #: Messages posted for each job, in order, with the time of arrival.
        self.posts: dict[str, list[tuple[float, dict[str, Any]]]] = {}
        #: Times and queries of the pings.
        self.pings: list[tuple[float, dict[str, list[str]]]] = []
        #: Set when the worker first asks for a job.
        self.first_poll = threading.Event()
        self._posted = threading.Condition()
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def environment(self) -> dict[str, str]:
        """Return the environment variables that the platform sets for a worker."""
        root = f"http://127.0.0.1:{self._server.server_port}"
        return {
            "RUNPOD_WEBHOOK_GET_JOB": f"{root}/job-take/$ID?gpu=none",
            "RUNPOD_WEBHOOK_POST_OUTPUT": f"{root}/job-done/$ID?gpu=none",
            "RUNPOD_WEBHOOK_PING": f"{root}/ping/$RUNPOD_POD_ID",
            "RUNPOD_PING_INTERVAL": "1000",
            "RUNPOD_AI_API_KEY": "local",
            "RUNPOD_POD_ID": "worker-1",
            # They contact 8.8.8.8, and measure the machine, not the engine.
            "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",
            "RUNPOD_SKIP_GPU_CHECK": "true",
        }

    def send(self, job: str, job_input: Mapping[str, Any], **beside: Any) -> None:
        """Put a job into the queue."""
        self.jobs.put({"id": job, "input": dict(job_input), **beside})

    def result(self, job: str, timeout: float) -> dict[str, Any]:
        """Wait for the job's result. Raises TimeoutError."""
        deadline = time.monotonic() + timeout
        with self._posted:
            while True:
                for _, post in self.posts.get(job, ()):
                    if post.get("status") != "IN_PROGRESS":
                        return post
                if not self._posted.wait(deadline - time.monotonic()):
                    raise TimeoutError(f"no result of job {job} within {timeout:g} s")

    def progress(self, job: str) -> list[tuple[float, dict[str, Any]]]:
        """Return the progress updates of a job, with their times."""
        with self._posted:
            posts = list(self.posts.get(job, ()))
        return [(when, post["output"]) for when, post in posts if post.get("status") == "IN_PROGRESS"]

    def note(self, job: str, post: dict[str, Any]) -> None:
        """Store a message that the worker posted."""
        with self._posted:
            self.posts.setdefault(job, []).append((time.monotonic(), post))
            self._posted.notify_all()

    def close(self) -> None:
        """Stop answering requests."""
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def working(
    platform: Platform, overrides: Sequence[str], *, log: IO[str] | Path, **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `multitalk runpod` with `overrides` in a separate process while the block runs; output goes to `log`."""
    command = [sys.executable, "-m", "engine", "runpod", *overrides]
    variables = {
        name: value for name, value in os.environ.items() if not name.startswith(("RUNPOD_", "BUCKET_", "S3_"))
    }
    with log.open("w") if isinstance(log, Path) else log as file:
        process = subprocess.Popen(
            command,
            env={**variables, **platform.environment(), **environment},
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
        """Print nothing: a worker that ends closes its connections."""


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
                platform.first_poll.set()
                self._reply(_within(platform.jobs))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            platform.note(urlsplit(self.path).path.rpartition("/")[2], json.loads(body))
            self._reply({})

        def _reply(self, payload: Any) -> None:
            body = b"" if payload is None else json.dumps(payload).encode()
            try:
                self.send_response(204 if payload is None else 200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
            except OSError:
                # The worker has closed the connection: it was told to stop.
                self.close_connection = True

        def log_message(self, *_: Any) -> None:
            """Print nothing."""

    return Handler


def _within(waiting: queue.Queue[Any]) -> Any:
    try:
        return waiting.get(timeout=_HOLD)
    except queue.Empty:
        return None
