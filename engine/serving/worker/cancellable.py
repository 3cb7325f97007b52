"""Runs a job in a separate thread, so that it can be cancelled."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from engine.components import CancelToken

T = TypeVar("T")


class JobCancelToken:
    """A cancel token that is set for one job, or for all jobs when the worker stops."""

    def __init__(self, stopped: threading.Event) -> None:
        self._own = threading.Event()
        self._stopped = stopped

    def is_set(self) -> bool:
        """Whether the job must end at its next check."""
        return self._own.is_set() or self._stopped.is_set()

    def set(self) -> None:
        """Cancel this job."""
        self._own.set()


async def in_thread(work: Callable[[CancelToken], T], stopped: threading.Event) -> T:
    """Run `work` in a new thread and return its result.

    If the caller is cancelled, the token is set, and the caller waits until the thread has ended, because the next job
    needs the device. Then CancelledError is raised.
    """
    token = JobCancelToken(stopped)
    done: Future[T] = Future()

    def run() -> None:
        try:
            result = work(token)
        except BaseException as error:  # noqa: BLE001 - raised again where the result is awaited
            done.set_exception(error)
        else:
            done.set_result(result)

    # On the event loop itself the SDK could not receive a signal to stop the job.
    threading.Thread(target=run, name="multitalk-job").start()
    ended = asyncio.wrap_future(done)
    try:
        return await asyncio.shield(ended)
    except asyncio.CancelledError:
        token.set()
        while not ended.done():
            try:
                await asyncio.wait([ended])
            except asyncio.CancelledError:
                # Cancelled a second time: the thread must still end first.
                continue
        if not ended.cancelled():
            # Nobody reads the exception; without this call asyncio would log a warning.
            ended.exception()
        raise
