"""SIGTERM and SIGINT: let the job finish within the time of grace, then cancel it, then end."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import Callable
from types import FrameType

_LOG = logging.getLogger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stop:
    """Ends the SDK's loop, which by itself neither stops a job nor hurries an idle worker."""

    def __init__(self, stopped: threading.Event, grace: float, busy: Callable[[], bool]) -> None:
        """`stopped` is what the jobs look at. `busy` says whether a job is not yet answered and sent."""
        self.asked = False
        self._stopped = stopped
        self._grace = grace
        self._busy = busy
        self._armed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ending: asyncio.Task[None] | None = None

    def arm(self) -> None:
        """Take the signals over; to be called inside the SDK's loop, whose start overwrites what was there before."""
        if self._armed or threading.current_thread() is not threading.main_thread():
            return
        self._armed = True
        self._loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            signal.signal(number, self._chained(signal.getsignal(number)))

    def _chained(self, before: object) -> Callable[[int, FrameType | None], None]:
        def on_signal(number: int, frame: FrameType | None) -> None:
            # The SDK's own handler: it takes no further jobs.
            if callable(before):
                before(number, frame)
            self._ask()

        return on_signal

    def _ask(self) -> None:
        if self.asked:
            # The second time it is meant at once.
            self._stopped.set()
            return
        self.asked = True
        if not self._busy():
            self._stopped.set()
        else:
            _LOG.info("told to end: the job has %g s to finish", self._grace)
            timer = threading.Timer(self._grace, self._stopped.set)
            timer.daemon = True
            timer.start()
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._begin)

    def _begin(self) -> None:
        # Kept, or asyncio may forget a task that nobody holds.
        self._ending = asyncio.get_running_loop().create_task(self._end())

    async def _end(self) -> None:
        while self._busy():
            await asyncio.sleep(0.05)
        # What is left waits for an answer of the platform, up to 90 s.
        for task in asyncio.all_tasks():
            if task is not asyncio.current_task():
                task.cancel()
