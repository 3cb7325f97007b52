"""A job's work in a thread of its own, which its caller can withdraw."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from engine.components import CancelToken

T = TypeVar("T")


class Token:
    """Set for one job, or for all of them when the worker stops."""

    def __init__(self, stopped: threading.Event) -> None:
        self._own = threading.Event()
        self._stopped = stopped

    def is_set(self) -> bool:
        """Whether the job is to end at its next check."""
        return self._own.is_set() or self._stopped.is_set()

    def set(self) -> None:
        """Withdraw this job."""
        self._own.set()


async def in_thread(work: Callable[[CancelToken], T], stopped: threading.Event) -> T:
    """Run `work` in a new thread and return what it returns.

    A cancelled caller sets the token and is held until the thread has ended, since the next job needs its device; then
    the cancellation goes on.
    """
    token = Token(stopped)
    done: Future[T] = Future()

    def run() -> None:
        try:
            result = work(token)
        except BaseException as error:  # noqa: BLE001 - it is raised where the result is waited for
            done.set_exception(error)
        else:
            done.set_result(result)

    # On the event loop the SDK could not even hear that the job is to stop.
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
                # Asked twice: the thread is still the one thing to wait for.
                continue
        if not ended.cancelled():
            # Nobody reads it any more, and asyncio would complain.
            ended.exception()
        raise
