"""What the embedded model must reach, and whether it does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Bar:
    """A figure, by its path in the report, and where it must lie; `open_` limits must not be met themselves."""

    name: str
    path: str
    least: float | None = None
    most: float | None = None
    open_: bool = False

    @property
    def text(self) -> str:
        """The bar as it is read."""
        if self.least is not None and self.most is not None:
            return f"{self.least:g} to {self.most:g}"
        equal = "" if self.open_ else "="
        return f">{equal} {self.least:g}" if self.least is not None else f"<{equal} {self.most:g}"

    def holds(self, value: float) -> bool:
        """Say whether `value` is where it must be."""
        if self.open_:
            return (self.least is None or value > self.least) and (self.most is None or value < self.most)
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)


def likeness_bars(name: str, path: str) -> tuple[Bar, ...]:
    """Return what a long video must hold in every window, of drawn people; `path` is that of its worst figures.

    Each is held to lie between what talking moves and what damage moves in tests/test_likeness.py. What MultiTalk's way
    of going on makes of the embedded model's people misses all of them (docs/long.md).
    """
    return (
        Bar(f"{name}: sharpness of the worst window in parts of the first's", f"{path}/sharpness_kept", least=0.9),
        Bar(f"{name}: sharpness of the worst window in parts of the picture's", f"{path}/sharpness", least=0.6),
        Bar(f"{name}: distance of the worst face from the picture's", f"{path}/identity", most=0.45),
        Bar(f"{name}: growth of that distance from the first window on", f"{path}/identity_grown", most=0.25),
        Bar(f"{name}: structure that the worst window has lost", f"{path}/structure_lost", most=0.1),
        Bar(f"{name}: colours of the worst window from the first's, Lab", f"{path}/colour", most=3),
    )


BARS = (
    Bar("detector against the truth", "detector/mean", least=0.95, open_=True),
    Bar("detector, worst skin class", "detector/worst_skin", least=0.95, open_=True),
    Bar("one person, correlation", "one/mean", least=0.90),
    Bar("two people, own voice", "two/own_mean", least=0.88),
    Bar("two people, own voice, the worst mouth", "two/own_worst", least=0.6),
    Bar("two people, the other's voice", "two/cross_mean", most=0.15, open_=True),
    Bar("binding margin", "two/margin", least=0.85),
    Bar("binding margin, voices swapped", "swapped/margin", least=0.82),
    Bar("the other's voice, voices swapped", "swapped/cross_mean", most=0.15, open_=True),
    Bar("lag within one frame, one person", "one/lag_share", least=0.95),
    Bar("lag within one frame, two people", "two/lag_share", least=0.95),
    Bar("silent people's movement against speakers'", "silent/relative", most=0.05),
    Bar("VAE, PSNR", "vae/psnr", least=29),
    Bar("VAE, PSNR of mouths", "vae/psnr_mouth", least=26),
    Bar("VAE, mean drift of brightness of 255", "vae/drift_mean", most=1),
    Bar("worst skin class below the best", "one/skin_gap", most=0.05),
    Bar("motion energy against the data's", "one/motion", least=0.5, most=1.5),
    Bar("turbo below standard, one person", "turbo/one/less", most=0.02),
    Bar("turbo below standard, two people", "turbo/two/less", most=0.02),
    Bar("turbo's forwards against standard's", "turbo/forwards", most=0.25),
    Bar("8 frames a second, direct, below 25", "fps/8_direct/less", most=0.05),
    Bar("12.5 frames a second, direct, below 25", "fps/12.5_direct/less", most=0.05),
    Bar("8 frames a second, native, below 25", "fps/8_native/less", most=0.05),
    Bar("long: worst window below the mean", "long/on/below", most=0.1),
    Bar("long: worst window below the mean, correction off", "long/off/below", most=0.1),
    Bar("long: mean Lab drift", "long/on/lab_drift", most=3, open_=True),
    Bar("long: mean Lab drift, correction off", "long/off/lab_drift", most=3, open_=True),
    Bar("long: change at seams against the median", "long/on/seam", most=1.5, open_=True),
    Bar("long: change at seams, correction off", "long/off/seam", most=1.5, open_=True),
    *likeness_bars("long", "long/on/worst"),
    Bar("recorded voices, own envelope", "real/own_mean", least=0.6),
    Bar("recorded voices, another's envelope", "real/cross_mean", most=0.2, open_=True),
    Bar("recorded voices, silence against speech", "real/silent", most=0.05),
    Bar("seconds of 81 frames, standard", "speed/standard_81_frames", most=6, open_=True),
    Bar("seconds of 6 s of two people, turbo", "speed/turbo_6_seconds", most=30, open_=True),
)

#: Of long voices (`bench talk --long-voice`).
LONG_BARS = tuple(
    bar
    for kind, name in (("long_one", "one person"), ("long_two", "two people"))
    for bar in (
        *likeness_bars(name, f"{kind}/worst"),
        Bar(f"{name}: lips, worst window below the mean", f"{kind}/sync_below", most=0.1),
        Bar(f"{name}: change at seams against the median", f"{kind}/seam", most=1.5, open_=True),
        Bar(f"{name}: frames more or less than asked for", f"{kind}/frames_off", most=0),
        Bar(f"{name}: seconds by which the sound track is longer or shorter", f"{kind}/sound_off", most=0.04),
        Bar(f"{name}: seconds by which the sound is late at the end", f"{kind}/sound_lag", most=0.001),
        Bar(f"{name}: CPU seconds of a window, second half against first", f"{kind}/pace/seconds_ratio", most=1.1),
        Bar(f"{name}: memory at the end against the third window", f"{kind}/pace/memory_ratio", most=1.05),
    )
)


def judge_bars(report: Mapping[str, Any], bars: Sequence[Bar] = BARS) -> list[dict[str, Any]]:
    """Return name, figure, value, bar and whether it holds, for each bar whose figure is in `report`."""
    return list(_judged(report, bars))


def _judged(report: Mapping[str, Any], bars: Sequence[Bar]) -> Iterator[dict[str, Any]]:
    for bar in bars:
        found: Any = report
        for part in bar.path.split("/"):
            found = found.get(part) if isinstance(found, Mapping) else None
        if found is not None:
            yield {
                "name": bar.name,
                "figure": bar.path,
                "value": found,
                "bar": bar.text,
                "holds": bar.holds(float(found)),
            }
