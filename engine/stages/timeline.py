"""Prompts and pictures by time: checks their entries, and plans with which window each begins."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from engine.data import Cue, PlannedCue, Window
from engine.errors import RequestError

#: Maximum number of prompts, and of pictures: the features of all prompts are in memory during a generation.
MOST = 64
#: Seconds by which times may differ because of rounding.
_TINY = 1e-6


@dataclass(frozen=True)
class Kind:
    """The two kinds of timeline."""

    #: The request's field, the key of an entry's value, and the field of a request with only one.
    field: str
    key: str
    single: str
    #: For messages.
    word: str


PROMPTS = Kind("prompts", "text", "prompt", "prompt")
IMAGES = Kind("images", "image", "image", "picture")


def check_cues(cues: Sequence[Cue], single: str, kind: Kind) -> None:
    """Raise RequestError for the first entry of `cues` that is invalid by itself; `single` is the field for only one.

    The order of entries in different units, and the end of the video, are checked when the video is planned.
    """
    if not isinstance(cues, tuple | list):
        raise _wrong(kind.field, f"{type(cues).__name__} is not a list", "give a list of entries with from and value")
    if not cues:
        return
    if single:
        raise RequestError(
            f"{kind.single} and {kind.field} are both given",
            field=f"request.{kind.field}",
            hint=f"remove {kind.single}; the first entry of {kind.field} holds from the start",
            code="conflict",
        )
    if len(cues) > MOST:
        raise _wrong(kind.field, f"{len(cues)} entries are too many", f"at most {MOST}", code="out_of_range")
    for index, cue in enumerate(cues):
        _check_cue(cue, f"{kind.field}[{index}]", kind)
    if (cues[0].seconds or cues[0].frame or 0) != 0:
        what = f"nothing holds from 0 to {_time(cues[0])}"
        raise _wrong(f"{kind.field}[0].{_key(cues[0])}", what, "begin the first entry at 0")
    for index, (one, other) in enumerate(pairwise(cues), start=1):
        if one.seconds is not None and other.seconds is not None:
            _check_order(one.seconds, other.seconds, one, other, index, kind)
        elif one.frame is not None and other.frame is not None:
            _check_order(one.frame, other.frame, one, other, index, kind)


def plan_cues(
    cues: Sequence[Cue], kind: Kind, windows: Sequence[Window], *, seconds: float, fps: float, generated_fps: float
) -> tuple[PlannedCue, ...]:
    """Return the window with which each entry of `cues` begins: the one whose new frames begin nearest to its time.

    `seconds` and `fps` are those of the finished video, `generated_fps` the rate of the windows' frames. At the same
    distance the later window is used. Raises RequestError for an entry at or after the end, for one that is not after
    the entry before it, and for one that would have no window of its own.
    """
    times = [cue.frame / fps if cue.frame is not None else float(cue.seconds or 0.0) for cue in cues]
    for index, (one, other) in enumerate(pairwise(cues), start=1):
        _check_order(times[index - 1], times[index], one, other, index, kind)
    begins = [(window.start + window.motion) / generated_fps for window in windows]
    planned: list[PlannedCue] = []
    for index, (cue, time) in enumerate(zip(cues, times, strict=True)):
        field = f"{kind.field}[{index}].{_key(cue)}"
        if time > seconds - _TINY:
            raise _wrong(
                field, f"{_time(cue)} is not in the video, which ends at {seconds:.2f} s", "give an earlier time"
            )
        window = min(range(len(begins)), key=lambda number: (round(abs(begins[number] - time), 6), -number))
        if planned and window <= planned[-1].window:
            taken = f"which has the {kind.word} of entry {index - 1}"
            what = f"the nearest window to {_time(cue)} is window {window + 1} at {begins[window]:.2f} s, {taken}"
            raise _wrong(field, what, _hint(begins, planned[-1].window))
        planned.append(PlannedCue(time, window, begins[window]))
    return tuple(planned)


def image_field(index: int, *, several: bool) -> str:
    """Return the request's field with the address of a reference picture; not `several`: of the only one."""
    return f"request.images[{index}].image" if several else "request.image"


def tell_rounded(planned: Sequence[PlannedCue], kind: Kind, fps: float) -> list[str]:
    """Return a warning about each entry that begins at another time than requested, by half a frame or more."""
    return [
        f"{kind.field}[{index}]: from {cue.requested:g} s becomes window {cue.window + 1}, {cue.begins:.2f} s, "
        f"because a window has one {kind.word}"
        for index, cue in enumerate(planned)
        if abs(cue.requested - cue.begins) >= 0.5 / fps - _TINY
    ]


def _hint(begins: Sequence[float], before: int) -> str:
    after = [f"{begin:.2f}" for begin in begins[before + 1 :]]
    if not after:
        return "remove it, or make the video longer: no window begins later"
    times = f"{', '.join(after[:3])}{', ...' if len(after) > 3 else ''}"
    return f"windows begin later at {times} s: give a time near one of them, or remove it"


def _check_cue(cue: Cue, name: str, kind: Kind) -> None:
    if not isinstance(cue, Cue):
        raise _wrong(name, f"{type(cue).__name__} is not an entry", f"give from and {kind.key}")
    if not isinstance(cue.value, str) or not cue.value.strip():
        hint = "describe who talks and where" if kind is PROMPTS else "give a path or an address"
        raise _wrong(f"{name}.{kind.key}", f"the {kind.word} is empty", hint)
    if (cue.seconds is None) is (cue.frame is None):
        both = "both from and from_frame are" if cue.frame is not None else "neither from nor from_frame is"
        raise _wrong(f"{name}.from", f"{both} given", "give one of them")
    begin, hint = (cue.seconds, "seconds, 0 or more") if cue.frame is None else (cue.frame, "a frame, 0 or more")
    allowed = (int,) if cue.frame is not None else (int, float)
    if isinstance(begin, bool) or not isinstance(begin, allowed) or not 0 <= begin <= 1e9 or not math.isfinite(begin):
        raise _wrong(f"{name}.{_key(cue)}", f"{str(begin)[:40]} is not a time of the video", f"give {hint}")


def _check_order(begin: float, after: float, one: Cue, other: Cue, index: int, kind: Kind) -> None:
    if after - begin > _TINY:
        return
    same = abs(after - begin) <= _TINY
    what = f"{_time(other)} is {'also the time' if same else f'earlier than {_time(one)}'} of the entry before it"
    raise _wrong(f"{kind.field}[{index}].{_key(other)}", what, "sort the entries by time, each time once")


def _key(cue: Cue) -> str:
    return "from" if cue.frame is None else "from_frame"


def _time(cue: Cue) -> str:
    return f"{cue.seconds:g} s" if cue.frame is None else f"frame {cue.frame}"


def _wrong(name: str, what: str, hint: str, code: str = "bad_value") -> RequestError:
    return RequestError(what, field=f"request.{name}", hint=hint, code=code)
