"""The clock of a sound file: the position of packets or frames, from the timestamps of their container."""

from __future__ import annotations

from typing import TYPE_CHECKING

from av.stream import Disposition

if TYPE_CHECKING:
    import av

#: Gaps in the timestamps longer than this are silence (one frame at 25 fps). Shorter ones come from rounded timestamps.
SLACK = 0.04
#: If timestamps go back by more than this, the clock restarts, for example where two recordings were joined.
_BACK = 0.1
#: Longer gaps mean that the clock was reset: FFmpeg's own limit for formats that may be interrupted
#: (dts_delta_threshold), elsewhere the longest voice allowed by default.
_GAP_JOINED, _GAP = 10.0, 3_600.0
#: Containers that store timestamps, and FLAC, whose frames are numbered; elsewhere FFmpeg counts packets.
STAMPED = ("mov", "matroska", "ogg", "mpegts", "flv", "asf", "nut", "mpeg", "flac")
#: Those of them whose clock begins at 0 even before the first sound, and which are often joined.
_FROM_ZERO, _JOINED = ("mov", "matroska"), ("mpegts", "mpeg", "ogg")


class Clock:
    """Places packets or frames one after the other, with gaps where their timestamps have gaps."""

    def __init__(self, at: float, zero: float, kind: str) -> None:
        #: Position of the next piece, seconds of the file.
        self.end = at
        #: (position, length) of each gap, seconds.
        self.gaps: list[tuple[float, float]] = []
        self._shift = at - zero
        self._stamped = kind in STAMPED
        self._most = _GAP_JOINED if kind in _JOINED else _GAP
        self._lost = 0.0
        self._hurt = False
        #: Whether anything was placed.
        self.began = False

    def place(self, stamp: float | None, seconds: float, *, exact: bool = True) -> tuple[float, bool]:
        """Return the position of a piece in seconds of the file, and whether there is a gap before it.

        `stamp` is the piece's time by the container's clock, seconds. If its length is not `exact`, timestamps decide.
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
        """Return the position in seconds of a piece that cannot be decoded."""
        return self.end + self._lost if stamp is None else max(self.end, stamp + self._shift)

    def lose(self, seconds: float) -> None:
        """Record that a piece of that length cannot be decoded."""
        self._lost += seconds
        self._hurt = True


def find_zero(container: av.container.InputContainer, raw: float, first_sound: float) -> float:
    """Return the container time at which the file begins; sound begins at `first_sound`, packets at `raw` (seconds)."""
    kind = kind_of(container)
    if kind not in STAMPED:
        return first_sound
    begins = [
        float(stream.start_time * stream.time_base)
        for stream in container.streams.video
        if stream.start_time is not None and stream.time_base and not stream.disposition & Disposition.attached_pic
    ]
    if begins:
        zero = min(*begins, first_sound)
    elif kind in _FROM_ZERO and raw > SLACK:
        zero = 0.0
    else:
        zero = first_sound
    # A clock that is so far ahead does not belong to this recording.
    return zero if first_sound - zero <= _GAP else first_sound


def kind_of(container: av.container.InputContainer) -> str:
    return container.format.name.partition(",")[0]
