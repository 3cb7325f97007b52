"""One recording of several people -> a voice file for each of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from engine.cancel import apart, check
from engine.data import Region, Request, Speaker
from engine.data.cancel import CancelToken
from engine.data.dialogue import Dialogue, Diariser, Made, Samples, Turn
from engine.errors import RequestError
from engine.media.audio import VOICE_RATE, decode
from engine.media.tracks import inspect
from engine.stages.speak import RATE, write_voice

FIELD = "request.voices"
#: Seconds over which a voice fades in and out at its turns, and by which each turn is extended to both sides.
_FADE, _AROUND = 0.02, 0.08
#: Seconds of overlap from which on there is a warning.
_TOLD = 0.2
#: Seconds of pause below which the turns of two people meet: a diariser that misses an overlap divides it between them.
_MEET = 0.1


def check_people(request: Request) -> None:
    """Raise RequestError for a wrong number of people, and boxes that are none or not one for each of them."""
    people = request.people
    if not isinstance(people, int) or isinstance(people, bool) or not 1 <= people <= 8:
        raise RequestError(f"{people!r} is not a number of people", field="request.people", hint="give 1 to 8")
    if not request.boxes:
        return
    if not request.voices:
        hint = "give each speaker a region instead"
        raise RequestError("there are boxes, and no recording", field="request.boxes", hint=hint, code="conflict")
    if len(request.boxes) != request.people:
        count = len(request.boxes)
        what = f"{count} {'box' if count == 1 else 'boxes'} for {people} {'person' if people == 1 else 'people'}"
        hint = "give a box for each person, in the order in which they first speak"
        raise RequestError(what, field="request.boxes", hint=hint)
    for index, box in enumerate(request.boxes):
        if len(box) != 4 or not all(math.isfinite(edge) for edge in box) or box[0] >= box[2] or box[1] >= box[3]:
            hint = "give [x0, y0, x1, y1] with x0 < x1 and y0 < y1, in pixels or fractions of the picture"
            raise RequestError(f"{list(box)} is not a box", field=f"request.boxes[{index}]", hint=hint)


def divide(
    request: Request,
    path: Path,
    diariser: Diariser,
    *,
    by: str,
    most: float,
    into: Path,
    cancel: CancelToken | None = None,
) -> Request:
    """Return `request` with a speaker for each person that `diariser` finds in the recording.

    Each voice is the recording in that person's turns and silence elsewhere, a file in the folder `into`. People are
    ordered as they first speak. Where several speak at once, each of their voices has the mixed sound, and the
    dialogue has a warning. Raises RequestError about the recording, and Cancelled.
    """
    cut = inspect(path, field=FIELD, max_seconds=most, cancel=cancel).cut
    sound = apart(lambda: decode(path, VOICE_RATE, "stereo", cut=cut, field=FIELD), cancel, "read")
    turns = apart(lambda: diariser.find(sound, request.people, cancel=cancel), cancel, "read", grace=0.5)
    check(cancel, "read")
    turns = _in_order(turns)
    found = len({turn.person for turn in turns})
    if not found:
        raise RequestError("nobody speaks in the recording", field=FIELD, hint="give a recording with speech")
    warnings = [] if found == request.people else [_fewer(found, request.people)]
    warnings += [told for told in (overlaps(turns), meetings(turns)) if told]
    heard = apart(lambda: decode(path, RATE, "mono", cut=cut, field=FIELD), cancel, "read")
    speakers, files = [], {}
    for person in range(request.people):
        own = [turn for turn in turns if turn.person == person]
        if not own:
            speakers.append(Speaker(None, _region(request, person)))
            continue
        address = f"voices:{person + 1}"
        files[address] = write_voice(into / f"voice_{person + 1}.wav", [(0.0, heard * _mask(own, len(heard)))], 0.0)
        speakers.append(Speaker(address, _region(request, person)))
    made = Made(Dialogue(by, (), turns, tuple(warnings)), files, path)
    return replace(request, speakers=tuple(speakers), made=made)


def by_channels(request: Request, path: Path, *, by: str, most: float, cancel: CancelToken | None = None) -> Request:
    """Return `request` with a speaker for each channel of the recording, from the first one on."""
    speakers, files, people = [], {}, "request.people"
    for person in range(request.people):
        address = f"voices:{person + 1}"
        try:
            inspect(path, field=FIELD, channel=person + 1, max_seconds=most, fields={"channel": people}, cancel=cancel)
        except RequestError as error:
            if error.field != people:
                raise
            hint = f"{by} needs a channel for each person: give fewer people, or choose another diariser"
            raise RequestError(error.what, field=people, hint=hint, code=error.code) from error
        speakers.append(Speaker(address, _region(request, person), channel=person + 1))
        files[address] = path
    return replace(request, speakers=tuple(speakers), made=Made(Dialogue(by, (), ()), files, path))


def _region(request: Request, person: int) -> Region:
    return Region(box=request.boxes[person]) if request.boxes else Region()


def overlaps(turns: Sequence[Turn]) -> str:
    """Return a sentence about the sections in which several people speak at once; "" if they are negligible."""
    sections = [
        (max(one.begins, other.begins), min(one.ends, other.ends))
        for index, one in enumerate(turns)
        for other in turns[index + 1 :]
        if one.person != other.person and min(one.ends, other.ends) - max(one.begins, other.begins) > _TOLD
    ]
    if not sections:
        return ""
    listed = ", ".join(f"{begin:.1f} to {end:.1f} s" for begin, end in sections[:5])
    more = f" and {len(sections) - 5} more" if len(sections) > 5 else ""
    return f"voices: several people speak at once at {listed}{more}; there each person gets the mixed sound"


def meetings(turns: Sequence[Turn]) -> str:
    """Return a sentence about the times at which one person's turn follows another's without a pause; "" if none does.

    `turns` are sorted by `begins`.
    """
    times = [
        other.begins
        for one, other in itertools.pairwise(turns)
        if one.person != other.person and abs(other.begins - one.ends) < _MEET
    ]
    if not times:
        return ""
    listed = ", ".join(f"{time:.1f}" for time in times[:5])
    more = f" and {len(times) - 5} more times" if len(times) > 5 else ""
    what = f"voices: turns follow each other without a pause at {listed} s{more}"
    return f"{what}; if people speak at once there, only one of them gets the sound"


def _fewer(found: int, people: int) -> str:
    those = "1 person speaks" if found == 1 else f"{found} people speak"
    return f"voices: {those} in the recording, not {people}; the others are silent"


def _in_order(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """Return the turns by their begin, with the people numbered as they first speak."""
    ordered = sorted(turns, key=lambda turn: (turn.begins, turn.ends))
    numbers: dict[int, int] = {}
    for turn in ordered:
        numbers.setdefault(turn.person, len(numbers))
    return tuple(replace(turn, person=numbers[turn.person]) for turn in ordered)


def _mask(turns: Sequence[Turn], length: int) -> Samples:
    """Return 1 in the turns and 0 elsewhere, with fades, at RATE."""
    mask = np.zeros(length, np.float32)
    fade = round(_FADE * RATE)
    for turn in turns:
        first = max(0, math.floor((turn.begins - _AROUND) * RATE))
        last = min(length, math.ceil((turn.ends + _AROUND) * RATE))
        if last - first < 2 * fade:
            continue
        part = np.ones(last - first, np.float32)
        ramp = np.linspace(0, 1, fade, dtype=np.float32)
        part[:fade], part[-fade:] = ramp, ramp[::-1]
        np.maximum(mask[first:last], part, out=mask[first:last])
    return mask
