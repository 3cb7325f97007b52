"""Calls to a disk that may stop answering: in a thread of their own, and nobody waits longer than agreed."""

from __future__ import annotations

import errno
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")

#: Seconds between two looks.
_LOOK = 0.05


class Stalled(OSError):
    """A call made no progress for too long; it may still be running."""

    def __init__(self, seconds: float) -> None:
        super().__init__(errno.ETIMEDOUT, f"no answer for {seconds:g} s")


class Aside:
    """Runs calls in turn in one thread, which does not keep the process alive."""

    def __init__(self, name: str, patience: float) -> None:
        """Start no thread yet. `patience` are seconds without progress after which `wait` gives up."""
        self._name = name
        self._patience = patience
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._beat = 0.0

    def beat(self) -> None:
        """Note that the running call makes progress."""
        self._beat = time.monotonic()

    def begin(self, call: Callable[[], T]) -> Future[T]:
        """Run `call` after those before it; return its future."""
        done: Future[T] = Future()

        def run() -> None:
            self.beat()
            try:
                result = call()
            except BaseException as error:  # noqa: BLE001 - raised again where the result is awaited
                done.set_exception(error)
            else:
                done.set_result(result)

        if self._thread is None:
            self.beat()
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        self._calls.put(run)
        return done

    def wait(self, done: Future[T], *, most: float | None = None, check: Callable[[], Any] = lambda: None) -> T:
        """Return the result of a call. `check` is called again and again meanwhile and may raise.

        Raises Stalled after `patience` seconds without progress, or after `most` seconds.
        """
        began = time.monotonic()
        while not done.done():
            check()
            now = time.monotonic()
            if now - max(began, self._beat) > self._patience or (most is not None and now - began > most):
                raise Stalled(self._patience if most is None else min(most, self._patience))
            try:
                return done.result(timeout=_LOOK)
            except TimeoutError:
                continue
        return done.result()

    def end(self) -> None:
        """End the thread after the calls that have begun; a later call begins another one."""
        if self._thread is not None:
            self._calls.put(None)
            self._thread = None

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            call()
