"""Write each window's frames beside the next window's work, in order, by one thread."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event
from types import TracebackType
from typing import Any, Self

from engine.cancel import LOOK
from engine.components import CancelToken
from engine.data import Artifact, Frames
from engine.errors import Cancelled
from engine.media.segments import Segment
from engine.stages.write import Writer


class WriteBehind:
    """Encodes a window's frames with a `Writer` while the caller computes the next window.

    At most one window is being encoded: `add` waits for the one before. So beside the frames that the caller holds
    there is one window in memory, and the bytes are those of `Writer.add` in turn. An error of the thread is raised by
    the next call of `check`, `add` or `finish`. As a context manager it ends the thread,
    within a frame's time, and then leaves the writer.
    """

    def __init__(
        self,
        writer: Writer,
        *,
        overlap: bool = True,
        cancel: CancelToken | None = None,
        on_segment: Callable[[Segment], None] | None = None,
    ) -> None:
        """Without `overlap` there is no thread: `add` encodes. Once `cancel` is set, waiting raises Cancelled.

        `on_segment` gets each window's segment when it is encoded, in the thread. Its errors are treated as the
        writer's.
        """
        self._writer = writer
        self._listeners = [] if on_segment is None else [on_segment]
        self._cancel = cancel
        self._thread = ThreadPoolExecutor(1, "multitalk-write") if overlap else None
        self._running: Future[None] | None = None
        self._stop = Event()
        #: Seconds of encoding in the thread, and of these the ones for which the caller waited.
        self._encoding = self._waiting = 0.0

    def listen(self, on_segment: Callable[[Segment], None]) -> None:
        """Have another function called with each segment, behind those before; call it before any window is added."""
        self._listeners.append(on_segment)

    @property
    def overlapped(self) -> float:
        """Return the seconds of encoding that took place beside other work."""
        return max(0.0, self._encoding - self._waiting)

    def add(self, frames: Frames, *, last: bool = False) -> None:
        """Have a window's frames, which must not change any more, encoded after those before, as a segment.

        `last` is set for the last window. Raises SinkError and Cancelled.
        """
        if self._thread is None:
            self._encode(frames, last)
            return
        self._wait()
        self._running = self._thread.submit(self._timed, frames, last)

    def take_over(self, segment: Segment, *, last: bool = False) -> None:
        """Use a segment that was encoded earlier, before any window is added. Raises SinkError."""
        self._hand_on(self._writer.take_over(segment, last=last))

    def check(self) -> None:
        """Raise the thread's error, if there is one, and do not wait."""
        if self._running is not None and self._running.done():
            self._running.result()

    def finish(self, facts: Mapping[str, Any] | None = None) -> Artifact:
        """Wait for all frames, write the file, with `facts` in its provenance, and return it.

        Raises SinkError and Cancelled.
        """
        self._wait()
        return self._writer.finish(facts)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The file must not be closed while the thread writes to it.
        self._stop.set()
        if self._thread is not None:
            self._thread.shutdown()
        self._writer.__exit__(kind, error, trace)

    def _wait(self) -> None:
        began = time.monotonic()
        try:
            while self._running is not None:
                if self._cancel is not None and self._cancel.is_set():
                    raise Cancelled("write")
                try:
                    running, self._running = self._running, None
                    running.result(timeout=LOOK)
                except TimeoutError:
                    if running.done():
                        # Raised by the thread itself.
                        raise
                    self._running = running
        finally:
            self._waiting += time.monotonic() - began

    def _timed(self, frames: Frames, last: bool) -> None:
        began = time.monotonic()
        self._encode(frames, last)
        self._encoding += time.monotonic() - began

    def _encode(self, frames: Frames, last: bool) -> None:
        for index in range(len(frames.pictures)):
            if self._stop.is_set():
                return
            self._writer.add(Frames(frames.pictures[index : index + 1], frames.fps))
        self._hand_on(self._writer.end_segment(last=last))

    def _hand_on(self, segment: Segment) -> None:
        for listener in self._listeners:
            listener(segment)
