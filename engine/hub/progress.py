"""How much of a download is there, how fast it comes and how long the rest will take."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Self, TextIO

#: Seconds over which the rate is taken.
_SPAN = 20.0


class Progress:
    """Writes a line about `measure()` of `total` bytes now and then while it is open: on a terminal in place."""

    def __init__(self, total: int, measure: Callable[[], int], out: TextIO | None) -> None:
        self._total = total
        self._measure = measure
        self._out = out
        self._on_terminal = out is not None and out.isatty()
        self._seen: deque[tuple[float, int]] = deque()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._tell, name="multitalk-progress", daemon=True)

    def __enter__(self) -> Self:
        self._seen.append((time.monotonic(), self._measure()))
        if self._out is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        if self._out is not None:
            self._thread.join()
            self._write(self.line(), last=True)

    def line(self) -> str:
        """Return where the download stands now."""
        now, have = time.monotonic(), self._measure()
        self._seen.append((now, have))
        while len(self._seen) > 2 and now - self._seen[1][0] >= _SPAN:
            self._seen.popleft()
        began, had = self._seen[0]
        rate = max(0, have - had) / max(now - began, 1e-3)
        left = f", {clock((self._total - have) / rate)} left" if rate and have < self._total else ""
        share = have / self._total if self._total else 1.0
        return f"{amount(have)} of {amount(self._total)} ({share:.0%}), {amount(rate)}/s{left}"

    def _tell(self) -> None:
        while not self._done.wait(1.0 if self._on_terminal else 15.0):
            self._write(self.line(), last=False)

    def _write(self, line: str, *, last: bool) -> None:
        assert self._out is not None
        if self._on_terminal:
            self._out.write(f"\r\x1b[K{line}" + ("\n" if last else ""))
        else:
            self._out.write(line + "\n")
        self._out.flush()


def amount(size: float) -> str:
    """Return bytes as people read them, in powers of 1000 as disks are sold."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError


def clock(seconds: float) -> str:
    """Return seconds as h:mm:ss."""
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
