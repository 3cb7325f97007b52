"""Progress updates of a generation: its position, the time of each stage, and the remaining time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from engine.components import CancelToken, ProgressCallback
from engine.data import Live, Preview, Progress
from engine.errors import Cancelled
from engine.runtime.bar import TimedProgress
from engine.runtime.memory import Peaks

#: The pieces of work of each window. Until a kind is measured, its time is estimated as a multiple of another kind.
#: Decoding takes about twice as long as encoding (measured with the embedded model: 1.7 to 2.4 times). The ratio of a
#: step to an encoding depends on the model, and is known after the first step.
_PIECES = {"encode": (1.0, ""), "step": (1.0, "encode"), "decode": (2.0, "encode"), "write": (0.1, "decode")}


class Meter:
    """Counts the pieces of one generation, measures its stages and checks the cancel token between them."""

    def __init__(
        self,
        callback: ProgressCallback | None,
        cancel: CancelToken | None,
        device: str = "cpu",
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._callback = callback
        self._cancel = cancel
        self._clock = clock
        self._windows = self._window = 0
        #: Forwards of the network in each step of the first window, and of the others.
        self._first: tuple[int, ...] = ()
        self._others: tuple[int, ...] = ()
        #: Kind of piece -> number of finished pieces, and their seconds.
        self._done = dict.fromkeys(_PIECES, 0)
        self._took = dict.fromkeys(_PIECES, 0.0)
        #: Of the finished pieces those of an earlier attempt, which took no time.
        self._taken = dict.fromkeys(_PIECES, 0)
        #: Kind of piece -> pieces in addition to those of `_windows`, for windows that are made again.
        self._added = dict.fromkeys(_PIECES, 0)
        #: The kind of the current piece, and its start.
        self._piece = ""
        self._size = 1
        self._since = 0.0
        self._fraction = 0.0
        self._warnings: tuple[str, ...] = ()
        self._live: Live | None = None
        self._preview: Preview | None = None
        #: The callback is called in two threads, but never at the same time.
        self._lock = threading.Lock()
        #: Stage -> seconds.
        self.timings: dict[str, float] = {}
        #: Memory by stage.
        self.peaks = Peaks(device)
        self.last: Progress = TimedProgress("start")

    def expect(
        self, windows: int, steps: int, forwards: Sequence[int] = (), others: Sequence[int] | None = None
    ) -> None:
        """Set the amount of work: `windows` windows of `steps` steps.

        `forwards` are those of the network in each step, of which one takes as long as another; empty: one a step.
        `others` are those of all windows but the first; None: the same.
        """
        self._windows, self._first = windows, tuple(forwards) or (1,) * steps
        self._others = self._first if others is None else tuple(others)

    def take_over(self, windows: int) -> None:
        """Count the first `windows` windows as done: an earlier attempt made them."""
        for piece in _PIECES:
            self._taken[piece] = self._units(piece, windows)
            self._done[piece] += self._taken[piece]
        self._window = windows
        self._report("resume", step=0)

    def warn(self, warnings: Sequence[str]) -> None:
        """Add `warnings` to all progress updates from now on."""
        self._warnings = tuple(warnings)
        if self._warnings:
            self._report(self.last.stage, step=0)

    @contextmanager
    def stage(self, name: str, *, window: int = 0) -> Iterator[None]:
        """Measure the block as stage `name`. Raises Cancelled at its begin if the caller cancelled."""
        self.check(name)
        self._window = window
        piece = "step" if name == "denoise" else name
        self._begin(piece if window and piece in _PIECES else "")
        self._report(name, step=0)
        began = self._clock()
        try:
            yield
        finally:
            self.timings[name] = self.timings.get(name, 0.0) + self._clock() - began
            self.peaks.note(name)
            if self._piece != "step":
                self._end()
            self._piece = ""

    def step(self, number: int) -> Progress:
        """Note that step `number` (from 1) of the current window is done."""
        self._end()
        self._begin("step" if number < len(self._sizes) else "", number)
        self._report("denoise", step=number)
        return self.last

    def again(self) -> None:
        """Note that the current window is denoised and decoded once more: the rest takes longer than it was said."""
        for piece in ("step", "decode"):
            self._added[piece] += self._units(piece, self._window) - self._units(piece, self._window - 1)

    def publish(self, live: Live) -> None:
        """Add to all progress updates from now on what is published; may be called from another thread."""
        with self._lock:
            self._live = live
            self._send(replace(self.last, live=live))

    def show(self, preview: Preview) -> None:
        """Add `preview` to all progress updates from now on."""
        self._preview = preview

    def window_done(self) -> None:
        """Note that the current window is done."""
        # Skipped pieces count as done.
        for piece in _PIECES:
            self._done[piece] = max(self._done[piece], self._units(piece, self._window) + self._added[piece])
        self._report("write", step=0)

    def is_set(self) -> bool:
        """Return whether the caller cancelled: a meter is a cancel token, too."""
        return self._cancel is not None and self._cancel.is_set()

    def check(self, stage: str) -> None:
        """Raise Cancelled if the caller cancelled."""
        if self.is_set():
            raise Cancelled(stage)

    @property
    def _sizes(self) -> tuple[int, ...]:
        """Forwards of the network in each step of the current window."""
        return self._others if self._window > 1 else self._first

    def _units(self, piece: str, windows: int) -> int:
        """Return what the first `windows` windows have of a piece: of steps their forwards."""
        if piece != "step" or windows < 1:
            return max(0, windows)
        return sum(self._first) + (windows - 1) * sum(self._others)

    def _begin(self, piece: str, step: int = 0) -> None:
        self._piece, self._since = piece, self._clock()
        self._size = self._sizes[step] if piece == "step" and step < len(self._sizes) else 1

    def _end(self) -> None:
        if self._piece:
            self._done[self._piece] += self._size
            self._took[self._piece] += self._clock() - self._since
            self._piece = ""

    def _cost(self, piece: str) -> float:
        """Return the cost of a piece: seconds, once a piece of any kind was measured."""
        if self._took[piece]:
            return self._took[piece] / max(1, self._done[piece] - self._taken[piece])
        share, of = _PIECES[piece]
        if of:
            return share * self._cost(of)
        # No encoding was measured: use the time of a step.
        return share * (self._took["step"] / max(1, self._done["step"] - self._taken["step"]) or 1.0)

    def _report(self, stage: str, *, step: int) -> None:
        costs = {piece: self._cost(piece) for piece in _PIECES}
        counts = {piece: self._units(piece, self._windows) + self._added[piece] for piece in _PIECES}
        total = sum(counts[piece] * costs[piece] for piece in _PIECES)
        left = sum(max(0, counts[piece] - self._done[piece]) * costs[piece] for piece in _PIECES)
        measured = any(self._took.values())
        # New measurements may make the rest longer, but the progress never decreases.
        self._fraction = max(self._fraction, 1 - left / total if total else 0.0)
        cost = costs.get(self._piece, 0.0) * self._size
        update = TimedProgress(
            stage=stage,
            window=self._window,
            windows=self._windows,
            step=step,
            steps=len(self._sizes),
            fraction=self._fraction,
            remaining=left if measured and total else None,
            ahead=min(cost / total, 1 - self._fraction) if total else 0.0,
            expected=cost if measured and self._piece else None,
            warnings=self._warnings,
            preview=self._preview,
        )
        with self._lock:
            self._send(replace(update, live=self._live))

    def _send(self, progress: Progress) -> None:
        self.last = progress
        if self._callback is not None:
            self._callback(progress)
