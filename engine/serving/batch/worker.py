"""The engine of a batch's process: what a RunPod worker does for a job, without a platform."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from engine.components import Service
from engine.errors import EngineError, SinkError
from engine.runtime.quiet import hush
from engine.serving.worker.handler import Handler, Terms
from engine.serving.worker.logs import Lines, install
from engine.serving.worker.warm_engine import Keeper


class EngineWorker:
    """Implements `components.JobWorker` in this process."""

    def __init__(self, open_service: Callable[[], Service], terms: Terms) -> None:
        """Open the service; load nothing. From now on this process logs bugs alone. Raises ConfigError."""
        # A launcher may have started it on a machine where nobody did before.
        hush()
        lines = Lines()
        install("ERROR", lines)
        self._keeper = Keeper(open_service())
        self._handler = Handler(self._keeper, terms, poster=lambda _: self._tell, lines=lines)
        self._tell: Callable[[Mapping[str, Any]], None] = lambda _: None

    def start(self) -> None:
        """See `components.JobWorker`."""
        self._keeper.warm()
        service = self._keeper.ready(self._handler.stopped)
        # Anything else, such as a device that is full, is for the first job to meet: it may be mended there.
        if isinstance(self._keeper.failure, EngineError):
            raise self._keeper.failure
        if sink := service.check()["failed"].get("sink"):
            raise SinkError(str(sink))

    def work(self, job: Mapping[str, Any], tell: Callable[[Mapping[str, Any]], None]) -> Mapping[str, Any]:
        """See `components.JobWorker`; its process is never lost."""
        self._tell = tell
        return asyncio.run(self._handler.handle(job))

    def stop(self) -> None:
        """See `components.JobWorker`."""
        self._handler.stopped.set()

    def close(self) -> None:
        """See `components.JobWorker`; the process is the caller's."""
        self._keeper.close()
