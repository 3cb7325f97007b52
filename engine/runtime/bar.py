"""Progress on a terminal: a bar that also moves between two reports, with the time that passed and is left."""

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

#: What is shown until the first report, which needs torch.
LOADING = "loading libraries"
#: Seconds for a piece of which nothing is known.
_UNKNOWN = 20.0
#: Share of a piece up to which the bar trusts what it should take; behind it, it only comes nearer and nearer.
_TRUSTED = 0.8
#: Pictures a second.
_RATE = 5


@dataclass(frozen=True)
class TimedProgress(Progress):
    """A report of progress that says how far away the next one is."""

    #: Share of the whole that the piece of work is which has begun: a step, an encoding or decoding of a window.
    ahead: float = 0.0
    #: Seconds that it should take; None while nothing is known.
    expected: float | None = None


def extrapolate(progress: Progress, seconds: float) -> Progress:
    """Return where a generation should stand `seconds` after its last report; never past its next one."""
    if not isinstance(progress, TimedProgress):
        return progress
    expected = progress.expected or _UNKNOWN
    share = seconds / expected
    if share > _TRUSTED:
        share = 1 - (1 - _TRUSTED) * math.exp(-(share - _TRUSTED) / (1 - _TRUSTED))
    remaining = progress.remaining
    if remaining is not None:
        # A piece that takes longer than it should leaves the time of the others.
        remaining = max(remaining - seconds, remaining - (progress.expected or 0.0), 0.0)
    return replace(progress, fraction=min(1.0, progress.fraction + progress.ahead * share), remaining=remaining)


@contextmanager
def bar(console: Console, describe: Callable[[Progress], str]) -> Iterator[ProgressCallback]:
    """Draw the bar while the block runs, several times a second, and take it away again; `describe` is its text."""
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
            # Pulses while nothing can be said.
            ProgressBar(1.0, current.fraction, width=30, pulse=not current.fraction, animation_time=now),
            f"{current.fraction:4.0%}",
            elapsed(now - began),
            describe(current),
        )
        return row

    # From a thread of its own: one piece may take minutes.
    with Live(console=console, transient=True, refresh_per_second=_RATE, get_renderable=draw):
        yield report


def elapsed(seconds: float) -> str:
    """Return seconds as minutes and seconds, with hours where there are any."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
