"""An endpoint that runs in a thread of the test's own process, so that tests can look into it and wait for it."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from engine.serving.endpoint.jobs import EndpointJob
from engine.serving.endpoint.limits import EndpointLimits
from engine.serving.endpoint.server import LocalEndpoint

T = TypeVar("T")
WORKER = Path(__file__).with_name("endpoint_worker.py")
#: Far longer than anything takes: what waits so long has failed.
PATIENCE = 120.0
#: The checks ask for a network and much free room on the disk.
NO_CHECKS = {"RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true", "RUNPOD_SKIP_GPU_CHECK": "true"}


class RunningEndpoint:
    """A running endpoint, with the loop it runs on."""

    def __init__(self, endpoint: LocalEndpoint, loop: asyncio.AbstractEventLoop) -> None:
        self.endpoint, self.loop = endpoint, loop

    def until(self, ready: Callable[[], Any], patience: float = PATIENCE) -> None:
        """Wait until `ready()`, which is asked on the endpoint's loop whenever a job or worker changes."""
        future = asyncio.run_coroutine_threadsafe(
            self.endpoint.jobs.changed.wait_for(lambda: bool(ready()), patience), self.loop
        )
        assert future.result(), "it never came to be"

    def ask(self, question: Callable[[], T]) -> T:
        """Return what `question` answers on the endpoint's loop."""

        async def asked() -> T:
            return question()

        return asyncio.run_coroutine_threadsafe(asked(), self.loop).result()

    def job(self, job_id: str) -> EndpointJob:
        job = self.endpoint.jobs.find(job_id)
        assert job is not None
        return job

    def url(self, path: str) -> str:
        return f"{self.endpoint.base_url}/{self.endpoint.endpoint_id}/{path}"


@contextmanager
def running(
    *words: str,
    workers: int = 1,
    limits: EndpointLimits | None = None,
    api_key: str | None = None,
    allowed_hosts: Sequence[str] = (),
    host: str = "127.0.0.1",
    worker: Sequence[str] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[RunningEndpoint]:
    """Run an endpoint whose workers are `worker`, or `endpoint_worker.py` with `words`."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        endpoint = LocalEndpoint(
            worker or [sys.executable, str(WORKER), *words],
            workers=workers,
            limits=limits,
            api_key=api_key,
            allowed_hosts=allowed_hosts,
            host=host,
            environment={**NO_CHECKS, **(environment or {})},
        )
        asyncio.run_coroutine_threadsafe(endpoint.__aenter__(), loop).result()
        try:
            yield RunningEndpoint(endpoint, loop)
        finally:
            asyncio.run_coroutine_threadsafe(endpoint.close(), loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
