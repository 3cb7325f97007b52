"""The clock of a sound file: where packets or frames go, by the timestamps of their container."""

from __future__ import annotations

import av
from av.stream import Disposition

#: A gap in the timestamps is silence from here on: a frame at 25 a second. Below it, it is how clocks are written down.
SLACK = 0.04
#: A clock that goes back by more begins anew, as where two recordings were joined.
_BACK = 0.1
#: Longer gaps are a clock that was set anew: as FFmpeg's own tools take it for formats that break off and go on
#: (dts_delta_threshold), and the longest voice by default elsewhere.
_GAP_JOINED, _GAP = 10.0, 3_600.0
#: Containers with timestamps of their own, and FLAC, whose frames have numbers; elsewhere FFmpeg counts what it found.
STAMPED = ("mov", "matroska", "ogg", "mpegts", "flv", "asf", "nut", "mpeg", "flac")
#: Of these, whose clock begins at 0 even where nothing is heard yet, and which are often joined.
_FROM_ZERO, _JOINED = ("mov", "matroska"), ("mpegts", "mpeg", "ogg")


class Clock:
    """Lays packets or frames one after the other, and apart where their timestamps say so."""

    def __init__(self, at: float, zero: float, kind: str) -> None:
        #: Seconds of the file at which the next piece goes.
        self.end = at
        #: (where, seconds) of each gap.
        self.gaps: list[tuple[float, float]] = []
        self._shift = at - zero
        self._stamped = kind in STAMPED
        self._most = _GAP_JOINED if kind in _JOINED else _GAP
        self._lost = 0.0
        self._hurt = False
        #: Whether anything was placed.
        self.began = False

    def place(self, stamp: float | None, seconds: float, *, exact: bool = True) -> tuple[float, bool]:
        """Return the file's second at which a piece goes, and whether something is missing before it.

        `stamp` is the piece's second by the container's clock. If its length is not `exact`, the stamps lead.
        """
        lost, hurt, first = self._lost, self._hurt, not self.began
        self._lost, self._hurt, self.began = 0.0, False, True
        time = self.end
        if not self._stamped or stamp is None:
            time += lost if lost > SLACK else 0.0
        else:
            ahead = stamp + self._shift - self.end
            if SLACK < ahead <= self._most:
                time = stamp + self._shift
                if not first and not hurt:
                    self.gaps.append((self.end, ahead))
            elif ahead > self._most or ahead < -_BACK:
                self._shift = self.end - stamp
        apart = time > self.end
        follows = exact or stamp is None or not self._stamped
        self.end = (time if follows else stamp + self._shift) + seconds  # type: ignore[operator]
        return time, apart

    def where(self, stamp: float | None) -> float:
        """Return the file's second of a piece that cannot be had."""
        return self.end + self._lost if stamp is None else max(self.end, stamp + self._shift)

    def lose(self, seconds: float) -> None:
        """Note that a piece of that length cannot be had."""
        self._lost += seconds
        self._hurt = True


def find_zero(container: av.container.InputContainer, raw: float, kept: float) -> float:
    """Return the container's second at which the file begins, for sound from `kept` on in packets from `raw` on."""
    kind = kind_of(container)
    if kind not in STAMPED:
        return kept
    begins = [
        float(stream.start_time * stream.time_base)
        for stream in container.streams.video
        if stream.start_time is not None and stream.time_base and not stream.disposition & Disposition.attached_pic
    ]
    if begins:
        zero = min(*begins, kept)
    elif kind in _FROM_ZERO and raw > SLACK:
        zero = 0.0
    else:
        zero = kept
    # A clock so far ahead is none of this recording.
    return zero if kept - zero <= _GAP else kept


def kind_of(container: av.container.InputContainer) -> str:
    return container.format.name.partition(",")[0]
