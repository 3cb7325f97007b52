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

#: Seconds between two checks of a token. A token has no way to wait for it, because it may combine several others.
LOOK = 0.1


def check(cancel: CancelToken | None, stage: str) -> None:
    """Raise Cancelled if the caller cancelled."""
    if cancel is not None and cancel.is_set():
        raise Cancelled(stage)


def pause(seconds: float, cancel: CancelToken | None, stage: str) -> None:
    """Wait `seconds`. Raises Cancelled within `LOOK` seconds once `cancel` is set."""
    until = time.monotonic() + seconds
    never = threading.Event()
    while True:
        check(cancel, stage)
        left = until - time.monotonic()
        if left <= 0:
            return
        never.wait(min(left, LOOK) if cancel is not None else left)


def acquire(lock: threading.Lock, cancel: CancelToken | None, stage: str) -> None:
    """Acquire a lock. Once `cancel` is set, raises Cancelled without acquiring it."""
    if cancel is None:
        lock.acquire()
        return
    check(cancel, stage)
    while not lock.acquire(timeout=LOOK):
        check(cancel, stage)


def apart(call: Callable[[], T], cancel: CancelToken | None, stage: str, *, grace: float = 0.0) -> T:
    """Return the result of `call`; once `cancel` is set, raise Cancelled within `LOOK` seconds and abandon the call.

    For calls into libraries that cannot be interrupted. An abandoned call continues in a background thread until it
    ends, so it must not need the device or change shared state. A call that checks the token itself has `grace` seconds
    to clean up. Without a token the call runs in the caller's thread.
    """
    if cancel is None:
        return call()
    check(cancel, stage)
    done: Future[T] = Future()

    def run() -> None:
        try:
            result = call()
        except BaseException as error:  # noqa: BLE001 - raised again where the result is awaited
            done.set_exception(error)
        else:
            done.set_result(result)

    threading.Thread(target=run, name="multitalk-apart", daemon=True).start()
    while True:
        try:
            return done.result(timeout=LOOK)
        except TimeoutError:
            if done.done():
                # Raised by the call itself.
                raise
            if cancel.is_set():
                wait([done], timeout=grace)
                raise Cancelled(stage) from None
