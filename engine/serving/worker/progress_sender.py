"""Sends the progress updates of a job: in order, at most one per second, never after the result."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from engine.data import Progress
from engine.redaction import scrub

_LOG = logging.getLogger(__name__)

#: Sends one progress update; blocks until it is sent.
Post = Callable[[Mapping[str, Any]], None]


class ProgressSender:
    """A thread that posts the newest progress update; older ones that were not sent are dropped."""

    def __init__(self, post: Post, *, every: float = 1.0, secrets: Iterable[str] = ()) -> None:
        """Start the thread. `every`: least seconds between two posts; `secrets` are hidden in warnings."""
        self._post = post
        self._secrets = tuple(secrets)
        self._every = every
        self._newest: Progress | None = None
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="multitalk-progress", daemon=True)
        self._thread.start()

    def report(self, progress: Progress) -> None:
        """Accept a progress update; never waits for the network."""
        with self._changed:
            self._newest = progress
            self._changed.notify()

    def close(self) -> None:
        """Send the update that is due and end the thread; afterwards no post runs or begins."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        due = 0.0
        while (progress := self._next(due)) is not None:
            due = time.monotonic() + self._every
            try:
                self._post(payload(progress, self._secrets))
            except Exception as error:  # noqa: BLE001 - a lost progress update must not fail the job
                _LOG.warning("a progress update could not be sent: %s", type(error).__name__)

    def _next(self, due: float) -> Progress | None:
        with self._changed:
            while True:
                wait = due - time.monotonic()
                if self._newest is not None and wait <= 0:
                    newest, self._newest = self._newest, None
                    return newest
                if self._closed:
                    # An update that is not due yet is dropped: the result follows at once.
                    return None
                self._changed.wait(None if self._newest is None else wait)


def payload(progress: Progress, secrets: Iterable[str] = ()) -> dict[str, Any]:
    """Return the progress as the caller reads it while the job runs, without `secrets`."""
    return {
        "percent": round(100 * progress.fraction),
        "stage": progress.stage,
        "step": progress.step,
        "steps": progress.steps,
        "window": progress.window,
        "windows": progress.windows,
        "seconds_left": None if progress.remaining is None else round(progress.remaining),
        "warnings": [scrub(warning, secrets) for warning in progress.warnings],
    }
