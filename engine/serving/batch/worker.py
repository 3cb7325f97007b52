"""The engine in a worker process of a batch: does a job as a RunPod worker does, without a platform."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from engine.components import Service
from engine.errors import EngineError, SinkError
from engine.runtime.quiet import silence_libraries
from engine.serving.worker.handler import Handler, Terms
from engine.serving.worker.logs import LogContext, install
from engine.serving.worker.warm_engine import WarmEngine


class EngineWorker:
    """Implements `components.JobWorker` in this process."""

    def __init__(self, open_service: Callable[[], Service], terms: Terms) -> None:
        """Open the service without loading weights; this process then logs only bugs. Raises ConfigError."""
        # The launcher may have started this process on another machine, where this was not done yet.
        silence_libraries()
        context = LogContext()
        install("ERROR", context)
        self._warm_engine = WarmEngine(open_service())
        self._handler = Handler(self._warm_engine, terms, poster=lambda _: self._tell, context=context)
        self._tell: Callable[[Mapping[str, Any]], None] = lambda _: None

    def start(self) -> None:
        """See `components.JobWorker`."""
        self._warm_engine.warm()
        service = self._warm_engine.wait_until_ready(self._handler.stopped)
        # Other errors, such as a full device, are left to the first job, which may recover from them.
        if isinstance(self._warm_engine.error, EngineError):
            raise self._warm_engine.error
        if sink := service.check()["failed"].get("sink"):
            raise SinkError(str(sink))

    def work(self, job: Mapping[str, Any], tell: Callable[[Mapping[str, Any]], None]) -> Mapping[str, Any]:
        """See `components.JobWorker`; it never raises WorkerLost."""
        self._tell = tell
        return asyncio.run(self._handler.handle(job))

    def stop(self) -> None:
        """See `components.JobWorker`."""
        self._handler.stopped.set()

    def close(self) -> None:
        """See `components.JobWorker`; the process itself belongs to the caller."""
        self._warm_engine.close()
