"""What a generation says about its own windows: figures, their limits, and what was made again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

#: Most windows that a line of text names.
_LISTED = 5


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

    @property
    def gained(self) -> str:
        """Return as text which of several attempts was kept, and by how much it is better than the first."""
        kept = next(number for number, attempt in enumerate(self.attempts, 1) if attempt.kept)
        first = "no video" if self.attempts[0].badness is None else f"{self.attempts[0].badness:.3g}"
        return f"attempt {kept} of {len(self.attempts)}, badness {first} -> {self.badness:.3g}"


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

    @property
    def line(self) -> str:
        """Return in one line which windows are outside their limits, and which were made again; "" if there is none."""
        parts = [
            f"window {one.window} ({', '.join(map(self._figure, one.below, [one] * len(one.below)))})"
            for one in self.windows
            if one.below
        ]
        more = len(parts) - _LISTED
        faults = "; ".join([*parts[:_LISTED], *([f"{more} more"] if more > 0 else [])])
        again = ", ".join(f"window {one.window} ({one.gained})" for one in self.windows if one.attempts)
        told = [f"{len(parts)} of {len(self.windows)} windows outside the limits: {faults}"] if parts else []
        return ". ".join([*told, *([f"made again: {again}"] if again else [])])

    def _figure(self, name: str, window: WindowReport) -> str:
        limit, value = self.limits[name], window.figures[name]
        assert value is not None
        bound = (
            f"at least {limit.least:g}"
            if limit.least is not None and value < limit.least
            else f"at most {limit.most:g}"
        )
        return f"{name} {value:.3g}, {bound}"
