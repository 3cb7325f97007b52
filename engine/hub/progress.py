"""How much of a download is there, how fast it comes and how long the rest will take."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import Self, TextIO

from tqdm import tqdm

#: Seconds between two looks: on a terminal, where they move a bar, and elsewhere, where each writes a line.
_PAUSES = {True: 1.0, False: 15.0}
#: Seconds without a byte after which that is said.
_SILENCE = 10.0
_LINE = "{n_fmt}B of {total_fmt}B ({percentage:.0f}%), {rate_fmt}, {remaining} left{postfix}"
_BAR = "{percentage:3.0f}% |{bar}| {n_fmt}B of {total_fmt}B, {rate_fmt}, {remaining} left{postfix}"


def say(line: str) -> None:
    """Print a line on stderr, above a bar that stands there."""
    tqdm.write(line, file=sys.stderr)


class Progress:
    """Shows `measure()` of `total` bytes while it is open: a bar on a terminal, a line now and then elsewhere.

    Rate and remaining time are those of the last seconds in which bytes came. `pause` is in seconds.
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
            # Each look is shown, when it is made: tqdm would wait for more, or skip some.
            mininterval=0,
            miniters=0,
            file=out if on_terminal else _Lines(out),
            # Else the bar of a second download in this process would be drawn below this one.
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
            # Shown once more, with the rate of the whole download.
            self._bar.n = self._measure()
            self._bar.set_postfix_str("", refresh=False)
            self._bar.close()

    def _watch(self) -> None:
        while not self._done.wait(self._pause):
            self._look()

    def _look(self) -> None:
        assert self._bar is not None
        now, more = time.monotonic(), self._measure() - self._bar.n
        if more > 0:
            self._last = now
        silence = now - self._last
        self._bar.set_postfix_str(f"no data for {silence:.0f} s" if silence >= _SILENCE else "", refresh=False)
        # Less is there when a damaged file is fetched again.
        self._bar.update(more)


class _Lines:
    """A file for tqdm that gets a line of its own for what would be drawn over the line before."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def write(self, text: str) -> None:
        if text.strip():
            self._out.write(text.strip() + "\n")

    def flush(self) -> None:
        self._out.flush()
