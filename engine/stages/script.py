"""The text of a dialogue -> who says what: the format of `--script`, docs/dialogue.md."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from engine.data import Region
from engine.data.dialogue import Voice
from engine.errors import RequestError

FIELD = "request.script"
#: Largest number of people, of turns, and of characters of a script, and longest pause in seconds.
PEOPLE, TURNS, CHARACTERS, PAUSE = 8, 500, 20_000, 60.0
#: Longest text of one turn, in characters.
_TURN = 2000

_NAME = r"[^\W\d_][\w.'-]*(?: [\w.'-]+){0,3}"
_DECLARED = re.compile(rf"@\s*({_NAME}?)((?:\s+\w+=\S*)*)\s*")
_SAID = re.compile(rf"({_NAME})\s*:(.*)")
_PAUSE = re.compile(r"\(\s*(pause|overlap)\s+(\S+?)\s*s?\s*\)", re.IGNORECASE)
_EXAMPLE = "write NAME: TEXT, (pause 0.8), (overlap 0.3), @NAME voice=... or # a comment"


@dataclass(frozen=True)
class Person:
    """One person of a script."""

    name: str
    voice: Voice
    region: Region = Region()


@dataclass(frozen=True)
class Said:
    """One turn of a script."""

    person: int
    text: str
    #: Line of the script, from 1.
    line: int
    #: Seconds between the end of what was said before and this; negative: it begins before that end; None: the usual.
    gap: float | None


@dataclass(frozen=True)
class Script:
    """A script; people are ordered from left to right."""

    people: tuple[Person, ...]
    turns: tuple[Said, ...]
    #: Seconds of silence after the last turn.
    after: float


def parse_script(text: str) -> Script:  # noqa: C901 - one branch for each kind of line
    """Return who says what.

    People are ordered as their `@` lines, or as they first speak if there are none. Raises RequestError that names the
    line.
    """
    if not isinstance(text, str) or not text.strip():
        raise RequestError("the script is empty", field=FIELD, hint="write lines such as anna: Hello.")
    if len(text) > CHARACTERS:
        what = f"the script has {len(text)} characters"
        raise RequestError(what, field=FIELD, hint=f"give at most {CHARACTERS}", code="out_of_range")
    people: dict[str, Person] = {}
    turns: list[Said] = []
    gap: float | None = None
    declared = False
    for number, line, indented in _lines(text):
        if match := _PAUSE.fullmatch(line):
            gap = _gap(match[1].lower(), match[2], gap, number, first=not turns)
        elif line.startswith("@"):
            if turns:
                raise _wrong(number, "people are declared before the first turn", "move the @ lines to the top")
            declared = True
            person = _declared(line, number, len(people))
            if person.name.lower() in people:
                raise _wrong(number, f"{person.name!r} is declared twice", "keep one of the @ lines")
            people[person.name.lower()] = person
        elif indented and turns and gap is None:
            turns[-1] = replace(turns[-1], text=f"{turns[-1].text} {line}".strip())
        elif match := _SAID.fullmatch(line):
            name = match[1]
            if name.lower() not in people:
                if declared:
                    close = difflib.get_close_matches(name.lower(), people, 1)
                    hint = f"did you mean {people[close[0]].name}?" if close else f"add a line @{name} at the top"
                    raise _wrong(number, f"{name!r} is not declared", hint)
                people[name.lower()] = Person(name, Voice(len(people)))
            turns.append(Said([*people].index(name.lower()), match[2].strip(), number, gap))
            gap = None
        else:
            raise _wrong(number, f"{_short(line)} is not a line of a script", _EXAMPLE)
        if len(people) > PEOPLE:
            raise _wrong(number, f"there are more than {PEOPLE} people", f"write for at most {PEOPLE}")
        if len(turns) > TURNS:
            raise _wrong(number, f"there are more than {TURNS} turns", "divide the script")
    for turn in turns:
        if not re.search(r"\w", turn.text):
            raise _wrong(turn.line, "nothing is said", "write what the person says after the colon")
        if len(turn.text) > _TURN:
            raise _wrong(turn.line, f"the turn has {len(turn.text)} characters", f"divide it: at most {_TURN}")
    if not turns:
        raise RequestError("nobody speaks in the script", field=FIELD, hint="write lines such as anna: Hello.")
    if gap is not None and gap < 0:
        raise RequestError("an overlap at the end has no turn after it", field=FIELD, hint="remove it")
    return Script(tuple(people.values()), tuple(turns), gap or 0.0)


def _lines(text: str) -> Iterator[tuple[int, str, bool]]:
    """Yield the number of each line, the line without spaces around it, and whether it is indented."""
    for number, line in enumerate(text.lstrip("\ufeff").splitlines(), start=1):
        bad = next((letter for letter in line if not letter.isprintable() and letter != "\t"), None)
        if bad is not None:
            raise _wrong(number, f"the line contains the character U+{ord(bad):04X}", "save the script as UTF-8 text")
        if (stripped := line.strip()) and not stripped.startswith("#"):
            yield number, stripped, line[0].isspace()


def _gap(kind: str, value: str, before: float | None, line: int, *, first: bool) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= PAUSE:
        raise _wrong(line, f"{_short(value)} is not a number of seconds", f"give 0 to {PAUSE:g}, such as (pause 0.8)")
    if kind == "overlap":
        if first or before is not None:
            raise _wrong(line, "an overlap stands between two turns", "write it directly after a turn")
        return -seconds
    if before is not None and before < 0:
        raise _wrong(line, "a pause follows an overlap", "keep one of them")
    return seconds + (before or 0.0)


def _declared(line: str, number: int, index: int) -> Person:
    match = _DECLARED.fullmatch(line)
    if match is None:
        raise _wrong(
            number, f"{_short(line)} declares nobody", "write @NAME language=en voice=NAME speed=1 box=0,0,0.5,1"
        )
    voice, region = Voice(index), Region()
    for word in match[2].split():
        key, _, value = word.partition("=")
        if key in ("voice", "language"):
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}", value):
                raise _wrong(
                    number, f"{_short(value)} is not a {key}", "give a name such as f3, or a tag such as en-gb"
                )
            voice = replace(voice, name=value) if key == "voice" else replace(voice, language=value)
        elif key == "speed":
            voice = replace(voice, speed=_speed(value, number))
        elif key == "box":
            region = _box(value, number)
        else:
            raise _wrong(number, f"{_short(key)} is not known", "known: language, voice, speed and box")
    return Person(match[1], voice, region)


def _speed(value: str, number: int) -> float:
    try:
        speed = float(value)
    except ValueError:
        speed = 0.0
    if not 0.5 <= speed <= 2:
        raise _wrong(number, f"{_short(value)} is not a speed", "give 0.5 to 2; 1 is the usual speed")
    return speed


def _box(value: str, number: int) -> Region:
    hint = "give box=x0,y0,x1,y1 with x0 < x1 and y0 < y1, in pixels or fractions"
    try:
        x0, y0, x1, y1 = (float(edge) for edge in value.split(","))
    except ValueError:
        raise _wrong(number, f"{_short(value)} is not a box", hint) from None
    if not (0 <= x0 < x1 < 1e6 and 0 <= y0 < y1 < 1e6):
        raise _wrong(number, f"{_short(value)} is not a box", hint)
    return Region(box=(x0, y0, x1, y1))


def _wrong(line: int, what: str, hint: str) -> RequestError:
    return RequestError(f"line {line}: {what}", field=FIELD, hint=hint)


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:37]}...")
