"""What a generation says about its own windows: figures, their limits, and what was made again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Limit:
    """The values that a figure may have: `least` to `most`; None: no limit on that side."""

    least: float | None = None
    most: float | None = None

    def excess(self, value: float) -> float:
        """Return by how much `value` is outside, in parts of the limit (of 1 for a limit below 1); 0 inside."""
        if self.least is not None and value < self.least:
            return (self.least - value) / max(abs(self.least), 1.0)
        if self.most is not None and value > self.most:
            return (value - self.most) / max(abs(self.most), 1.0)
        return 0.0


@dataclass(frozen=True)
class Attempt:
    """One of several times that a window was made."""

    #: Seed of its noise, drawn from the request's generator; None: the first time, with that generator itself.
    seed: int | None
    #: How far its figures are outside their limits, in all; None: no video could be made of it.
    badness: float | None
    #: Figures outside their limits, or the error's text if no video could be made of it.
    below: tuple[str, ...]
    #: Whether it is the one in the video.
    kept: bool = False


@dataclass(frozen=True)
class WindowReport:
    """The figures of one window as it is in the video."""

    #: From 1.
    window: int
    #: Begin and end of its new frames in seconds of the video.
    start: float
    end: float
    #: By name of a measure (docs/reports.md), to four digits; None: unknown.
    figures: Mapping[str, float | None]
    #: Why a figure is unknown in this window, if it is known in others.
    unknown: Mapping[str, str] = field(default_factory=dict)
    #: Names of the figures outside their limits.
    below: tuple[str, ...] = ()
    #: How far they are outside, in all; 0: every known figure is within its limit.
    badness: float = 0.0
    #: Every time the window was made, in order; empty if that was once.
    attempts: tuple[Attempt, ...] = ()


@dataclass(frozen=True)
class Report:
    """The judgement of all windows of a video."""

    #: Numbers (from 1) of the windows with a figure outside its limit.
    below: tuple[int, ...]
    #: Numbers of the windows that were made more than once.
    retaken: tuple[int, ...]
    windows: tuple[WindowReport, ...]
    limits: Mapping[str, Limit]
    #: Measures that have no figure in this video, with the reason.
    unknown: Mapping[str, str]
    #: Seconds that the measures took.
    seconds: float
