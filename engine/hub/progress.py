"""The progress of a download: bytes on disk, rate and remaining time."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import Self, TextIO

from tqdm import tqdm

#: Seconds between two updates: on a terminal (True) each moves a bar, elsewhere (False) each writes a line.
_PAUSES = {True: 1.0, False: 15.0}
#: Seconds without new bytes after which the line says so.
_SILENCE = 10.0
_LINE = "{n_fmt}B of {total_fmt}B ({percentage:.0f}%), {rate_fmt}, {remaining} left{postfix}"
_BAR = "{percentage:3.0f}% |{bar}| {n_fmt}B of {total_fmt}B, {rate_fmt}, {remaining} left{postfix}"


def say(line: str) -> None:
    """Print a line on stderr, above the bar if there is one."""
    tqdm.write(line, file=sys.stderr)


class Progress:
    """Shows `measure()` of `total` bytes while it is open: a bar on a terminal, else a line from time to time.

    Rate and remaining time are those of the last seconds in which bytes arrived. `pause` is the number of seconds
    between two updates.
    """

    def __init__(
        self, total: int, measure: Callable[[], int], out: TextIO | None, *, pause: float | None = None
    ) -> None:
        self._measure = measure
        self._bar: tqdm | None = None
        if out is None:
            return
        on_terminal = out.isatty()
        self._pause = _PAUSES[on_terminal] if pause is None else pause
        self._last = time.monotonic()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="multitalk-progress", daemon=True)
        self._bar = tqdm(
            total=total,
            initial=measure(),
            unit="B",
            unit_scale=True,
            # Each update is shown at once: tqdm would delay or skip some.
            mininterval=0,
            miniters=0,
            file=out if on_terminal else _Lines(out),
            # Otherwise the bar of a second download in this process would be drawn below this one.
            position=0,
            dynamic_ncols=on_terminal,
            bar_format=_BAR if on_terminal else _LINE,
        )

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._done.set()
            self._thread.join()
            # The last update shows the rate of the whole download.
            self._bar.n = self._measure()
            self._bar.set_postfix_str("", refresh=False)
            self._bar.close()

    def _watch(self) -> None:
        while not self._done.wait(self._pause):
            self._update()

    def _update(self) -> None:
        assert self._bar is not None
        now, more = time.monotonic(), self._measure() - self._bar.n
        if more > 0:
            self._last = now
        silence = now - self._last
        self._bar.set_postfix_str(f"no data for {silence:.0f} s" if silence >= _SILENCE else "", refresh=False)
        # `more` is negative if a damaged file is downloaded again.
        self._bar.update(more)


class _Lines:
    """A file for tqdm that writes each update as a new line instead of over the previous one."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def write(self, text: str) -> None:
        if text.strip():
            self._out.write(text.strip() + "\n")

    def flush(self) -> None:
        self._out.flush()
