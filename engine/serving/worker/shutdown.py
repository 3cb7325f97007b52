"""Handles SIGTERM and SIGINT: lets the job finish within the grace period, then cancels it, then ends."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import Callable
from types import FrameType

_LOG = logging.getLogger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class GracefulShutdown:
    """Ends the SDK's loop, which by itself neither stops a job nor wakes an idle worker."""

    def __init__(self, stopped: threading.Event, grace: float, busy: Callable[[], bool]) -> None:
        """`stopped` is the event that jobs check. `busy` returns whether a job runs or its answer is not sent yet."""
        self.requested = False
        self._stopped = stopped
        self._grace = grace
        self._busy = busy
        self._armed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ending: asyncio.Task[None] | None = None

    def arm(self) -> None:
        """Install the signal handlers. Call it inside the SDK's loop, whose start replaces earlier handlers."""
        if self._armed or threading.current_thread() is not threading.main_thread():
            return
        self._armed = True
        self._loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            signal.signal(number, self._chained(signal.getsignal(number)))

    def _chained(self, before: object) -> Callable[[int, FrameType | None], None]:
        def on_signal(number: int, frame: FrameType | None) -> None:
            # The SDK's own handler: it stops taking jobs.
            if callable(before):
                before(number, frame)
            self._request()

        return on_signal

    def _request(self) -> None:
        if self.requested:
            # A second signal: stop at once.
            self._stopped.set()
            return
        self.requested = True
        if not self._busy():
            self._stopped.set()
        else:
            _LOG.info("stopping: the job has %g s to finish", self._grace)
            timer = threading.Timer(self._grace, self._stopped.set)
            timer.daemon = True
            timer.start()
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._begin)

    def _begin(self) -> None:
        # The reference is kept because asyncio holds tasks only weakly.
        self._ending = asyncio.get_running_loop().create_task(self._end())

    async def _end(self) -> None:
        while self._busy():
            await asyncio.sleep(0.05)
        # The remaining tasks wait for an answer of the platform, up to 90 s.
        for task in asyncio.all_tasks():
            if task is not asyncio.current_task():
                task.cancel()
