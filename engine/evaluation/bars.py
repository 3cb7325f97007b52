"""Bars: limits for the figures of a report, and checks against them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Bar:
    """Limits for a figure, named by its path in the report; `open_` limits exclude the limit itself."""

    name: str
    path: str
    least: float | None = None
    most: float | None = None
    open_: bool = False

    @property
    def text(self) -> str:
        """The limits as text."""
        if self.least is not None and self.most is not None:
            return f"{self.least:g} to {self.most:g}"
        equal = "" if self.open_ else "="
        return f">{equal} {self.least:g}" if self.least is not None else f"<{equal} {self.most:g}"

    def holds(self, value: float) -> bool:
        """Return whether `value` is within the limits."""
        if self.open_:
            return (self.least is None or value > self.least) and (self.most is None or value < self.most)
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)


def likeness_bars(name: str, path: str) -> tuple[Bar, ...]:
    """Return the bars for every window of a long video of drawn people; `path` is that of its worst figures.

    tests/evaluation/test_likeness.py checks that each is between the changes by talking and the changes by damage. The
    embedded model with MultiTalk's style of continuation fails all of them (docs/long.md).
    """
    return (
        Bar(f"{name}: sharpness of the worst window in parts of the first's", f"{path}/sharpness_kept", least=0.9),
        Bar(f"{name}: sharpness of the worst window in parts of the picture's", f"{path}/sharpness", least=0.6),
        Bar(f"{name}: distance of the worst face from the picture's", f"{path}/identity", most=0.45),
        Bar(f"{name}: growth of that distance from the first window on", f"{path}/identity_grown", most=0.25),
        Bar(f"{name}: structure that the worst window has lost", f"{path}/structure_lost", most=0.1),
        Bar(f"{name}: colours of the worst window from the first's, Lab", f"{path}/colour", most=3),
    )


def check_bars(report: Mapping[str, Any], bars: Sequence[Bar]) -> list[dict[str, Any]]:
    """Return name, figure, value, bar and whether it holds, for each bar whose figure is in `report`."""
    return list(_ok(report, bars))


def _ok(report: Mapping[str, Any], bars: Sequence[Bar]) -> Iterator[dict[str, Any]]:
    for bar in bars:
        value: Any = report
        for part in bar.path.split("/"):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is not None:
            yield {
                "name": bar.name,
                "figure": bar.path,
                "value": value,
                "bar": bar.text,
                "holds": bar.holds(float(value)),
            }
