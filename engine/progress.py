"""Signs of life: where a generation stands, what each stage took, how long the rest will take."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from engine.components import CancelToken, ProgressCallback
from engine.data import Progress
from engine.errors import Cancelled
from engine.peaks import Peaks


class Meter:
    """Counts the steps of one generation, measures its stages and asks the cancel token between them."""

    def __init__(self, callback: ProgressCallback | None, cancel: CancelToken | None, device: str = "cpu") -> None:
        self._callback = callback
        self._cancel = cancel
        self._steps = self._windows = self._window = 0
        # Units of work: each step is one, and what follows the steps of a window (decoding, writing) is another.
        self._done = 0
        self._began: float | None = None
        # The generating thread's processor time, in all and within stages.
        self._cpu_began, self._cpu_stages = time.thread_time(), 0.0
        self._warnings: tuple[str, ...] = ()
        #: Seconds by stage.
        self.timings: dict[str, float] = {}
        #: Memory by stage.
        self.peaks = Peaks(device)
        self.last = Progress("start")

    def expect(self, windows: int, steps: int) -> None:
        """Say how much there is to do: `windows` windows of `steps` steps."""
        self._windows, self._steps = windows, steps

    def warn(self, warnings: Sequence[str]) -> None:
        """Report what is known before the work; all progress from here on carries it."""
        self._warnings = tuple(warnings)
        if self._warnings:
            self._tell(self.last.stage, step=0)

    @contextmanager
    def stage(self, name: str, *, window: int = 0) -> Iterator[None]:
        """Measure what happens inside as stage `name`. Raises Cancelled at its begin if the caller withdrew."""
        self.check(name)
        if window and self._began is None:
            self._began = time.monotonic()
        self._window = window
        self._tell(name, step=0)
        began, cpu = time.monotonic(), time.thread_time()
        try:
            yield
        finally:
            self._cpu_stages += time.thread_time() - cpu
            self.timings[name] = self.timings.get(name, 0.0) + time.monotonic() - began
            self.peaks.note(name)

    @property
    def overhead(self) -> float:
        """Processor seconds that the generating thread spent outside of all stages so far."""
        return time.thread_time() - self._cpu_began - self._cpu_stages

    def step(self, number: int) -> Progress:
        """Note that step `number` (from 1) of the current window is done."""
        self._done += 1
        self._tell("denoise", step=number)
        return self.last

    def window_done(self) -> None:
        """Note that all of the current window is done."""
        self._done += 1
        self._tell("write", step=0)

    def is_set(self) -> bool:
        """Whether the caller withdrew: a meter is a cancel token itself."""
        return self._cancel is not None and self._cancel.is_set()

    def check(self, stage: str) -> None:
        """Raise Cancelled if the caller withdrew."""
        if self.is_set():
            raise Cancelled(stage)

    def _tell(self, stage: str, *, step: int) -> None:
        total = self._windows * (self._steps + 1)
        remaining = None
        if self._began is not None and self._done:
            remaining = (time.monotonic() - self._began) / self._done * (total - self._done)
        self.last = Progress(
            stage=stage,
            window=self._window,
            windows=self._windows,
            step=step,
            steps=self._steps,
            fraction=self._done / total if total else 0.0,
            remaining=remaining,
            warnings=self._warnings,
        )
        if self._callback is not None:
            self._callback(self.last)
