"""Sends the progress updates of a job: in order, at most one per second, never after the result."""

from __future__ import annotations

import base64
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import urljoin

from engine.data import Live, Preview, Progress
from engine.redaction import scrub

_LOG = logging.getLogger(__name__)

#: Sends one progress update; blocks until it is sent.
Post = Callable[[Mapping[str, Any]], None]


class ProgressSender:
    """A thread that posts the newest progress update; older ones that were not sent are dropped.

    Parts of a video that is published while it is made are also sent as pieces of a stream, and none of them is
    dropped.
    """

    def __init__(
        self, post: Post, *, stream: Post | None = None, every: float = 1.0, secrets: Iterable[str] = ()
    ) -> None:
        """Start the thread. `every`: least seconds between two posts; `secrets` are hidden in warnings.

        `stream` sends a piece of the job's stream; None: there is none.
        """
        self._post = post
        self._stream = stream
        #: The newest update, and what of it the stream has had.
        self._last = Progress("")
        self._streamed = Live("")
        self._window = 0
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
            self._newest = self._last = progress
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
            self._send(self._post, payload(progress, self._secrets))
            self._send_pieces(progress)
        self._send_pieces(self._last)

    def _send(self, post: Post, content: Mapping[str, Any]) -> None:
        try:
            post(content)
        except Exception as error:  # noqa: BLE001 - a lost progress update must not fail the job
            _LOG.warning("a progress update could not be sent: %s", type(error).__name__)

    def _send_pieces(self, progress: Progress) -> None:
        if self._stream is None:
            return
        piece: dict[str, Any] = {}
        live, before, preview = progress.live, self._streamed, progress.preview
        if live is not None and live != before:
            # Another attempt, which began after an error, publishes from the beginning.
            known = len(before.parts) if live.address == before.address else 0
            parts = [
                {"address": _absolute(live, part.address), "begins": part.begins, "seconds": part.seconds}
                for part in live.parts[known:]
            ]
            piece["live"] = {"playlist": live.address, "parts": parts, "ended": live.ended}
            self._streamed = live
        # Those of steps would fill the stream of a caller who does not read it.
        if preview is not None and not preview.step and preview.window != self._window:
            piece["preview"] = _preview(preview)
            self._window = preview.window
        if piece:
            self._send(self._stream, piece)

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
        **({} if progress.live is None else {"live": _live(progress.live)}),
        **({} if progress.preview is None else {"preview": _preview(progress.preview)}),
    }


def _live(live: Live) -> dict[str, Any]:
    return {
        "playlist": live.address,
        "seconds": round(live.seconds, 3),
        "parts": len(live.parts),
        "ended": live.ended,
    }


def _preview(preview: Preview) -> dict[str, Any]:
    jpeg = base64.b64encode(preview.content).decode("ascii")
    return {
        "image": f"data:image/jpeg;base64,{jpeg}",
        "frames": preview.frames,
        "window": preview.window,
        "step": preview.step,
    }


def _absolute(live: Live, address: str) -> str:
    return urljoin(live.address, address)
