"""Cancellation: waits and blocking calls that end soon after the caller cancels the request."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

from engine.data.cancel import CancelToken
from engine.errors import Cancelled

T = TypeVar("T")

#: Seconds between two looks at a token: it can be asked and not waited for, since it may stand for several others.
LOOK = 0.1


def check(cancel: CancelToken | None, stage: str) -> None:
    """Raise Cancelled if the caller withdrew."""
    if cancel is not None and cancel.is_set():
        raise Cancelled(stage)


def pause(seconds: float, cancel: CancelToken | None, stage: str) -> None:
    """Wait so many seconds. Raises Cancelled within `LOOK` seconds once `cancel` is set."""
    until = time.monotonic() + seconds
    never = threading.Event()
    while True:
        check(cancel, stage)
        left = until - time.monotonic()
        if left <= 0:
            return
        never.wait(min(left, LOOK) if cancel is not None else left)


def acquire(lock: threading.Lock, cancel: CancelToken | None, stage: str) -> None:
    """Take a lock. Raises Cancelled, and has not taken it, once `cancel` is set."""
    if cancel is None:
        lock.acquire()
        return
    check(cancel, stage)
    while not lock.acquire(timeout=LOOK):
        check(cancel, stage)


def apart(call: Callable[[], T], cancel: CancelToken | None, stage: str, *, grace: float = 0.0) -> T:
    """Return what `call` returns; raise Cancelled within `LOOK` seconds once `cancel` is set, and leave it to itself.

    For calls into libraries that cannot be interrupted. The call then goes on until it ends by itself, in a thread that
    nobody waits for: it must need no device, and harm nothing. One that looks at the token as well has `grace` seconds
    to tidy up. Without a token it runs in the caller's own thread.
    """
    if cancel is None:
        return call()
    check(cancel, stage)
    done: Future[T] = Future()

    def run() -> None:
        try:
            result = call()
        except BaseException as error:  # noqa: BLE001 - it is raised where the result is waited for
            done.set_exception(error)
        else:
            done.set_result(result)

    threading.Thread(target=run, name="multitalk-apart", daemon=True).start()
    while True:
        try:
            return done.result(timeout=LOOK)
        except TimeoutError:
            if done.done():
                # The call's own.
                raise
            if cancel.is_set():
                wait([done], timeout=grace)
                raise Cancelled(stage) from None
