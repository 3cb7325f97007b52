"""A progress bar on a terminal, with elapsed and remaining time, that also moves between two progress updates."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from engine.components import ProgressCallback
from engine.data import Progress

if TYPE_CHECKING:
    from rich.console import Console

#: Text until the first progress update, which needs torch.
LOADING = "loading libraries"
#: Assumed seconds of a piece of work that was not measured yet.
_UNKNOWN = 20.0
#: Share of a piece's expected time after which the bar slows down and only approaches the piece's end.
_TRUSTED = 0.8
#: Refreshes per second.
_RATE = 5


@dataclass(frozen=True)
class TimedProgress(Progress):
    """A progress update with an estimate of the next one."""

    #: Share of the whole of the piece of work that has just begun: a step, or encoding or decoding a window.
    ahead: float = 0.0
    #: Expected seconds of that piece; None if nothing was measured yet.
    expected: float | None = None


def extrapolate(progress: Progress, seconds: float) -> Progress:
    """Return the expected progress `seconds` after the last update, never beyond the next one."""
    if not isinstance(progress, TimedProgress):
        return progress
    expected = progress.expected or _UNKNOWN
    share = seconds / expected
    if share > _TRUSTED:
        share = 1 - (1 - _TRUSTED) * math.exp(-(share - _TRUSTED) / (1 - _TRUSTED))
    remaining = progress.remaining
    if remaining is not None:
        # If a piece takes longer than expected, the time of the other pieces still remains.
        remaining = max(remaining - seconds, remaining - (progress.expected or 0.0), 0.0)
    return replace(progress, fraction=min(1.0, progress.fraction + progress.ahead * share), remaining=remaining)


@contextmanager
def bar(console: Console, describe: Callable[[Progress], str]) -> Iterator[ProgressCallback]:
    """Draw the bar while the block runs and remove it at the end; `describe` returns its text."""
    from rich.live import Live
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    began = time.monotonic()
    last, since = Progress(LOADING), began

    def report(progress: Progress) -> None:
        nonlocal last, since
        last, since = progress, time.monotonic()

    def draw() -> Table:
        now = time.monotonic()
        current = extrapolate(last, now - since)
        row = Table.grid(padding=(0, 1))
        row.add_row(
            # Pulses until there is progress.
            ProgressBar(1.0, current.fraction, width=30, pulse=not current.fraction, animation_time=now),
            f"{current.fraction:4.0%}",
            elapsed(now - began),
            describe(current),
        )
        return row

    # Drawn in a separate thread, because one piece may take minutes.
    with Live(console=console, transient=True, refresh_per_second=_RATE, get_renderable=draw):
        yield report


def elapsed(seconds: float) -> str:
    """Return seconds as m:ss, or h:mm:ss from one hour on."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
