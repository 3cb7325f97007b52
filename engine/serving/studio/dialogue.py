"""The people of a script, and their places in the picture, which a script has in its lines."""

from __future__ import annotations

import re
from collections.abc import Sequence

from engine.serving.studio.fields import MOST_SCRIPT, FieldError, Person

#: `@NAME ...` declares a person, `NAME: TEXT` is a turn; whether they are right is the engine's to say.
_DECLARED = re.compile(r"@\s*([^=@]+?)(?=\s+\w+=|\s*$)")
_SAID = re.compile(r"([^\W\d_][^:@#(]{0,200}?)\s*:")


def names_of(script: str) -> list[str]:
    """Return the names of a script's people from left to right: as they are declared or, without `@`, as they speak."""
    declared: list[str] = []
    said: list[str] = []
    for line in script.splitlines():
        if match := _DECLARED.match(line.strip()):
            declared.append(match[1])
        elif not line[:1].isspace() and (match := _SAID.match(line)):
            said.append(match[1])
    names: dict[str, str] = {}
    for name in declared or said:
        names.setdefault(name.lower(), name)
    return list(names.values())


def placed_script(script: str, people: Sequence[Person]) -> str:
    """Return the script with the boxes of the people in it. Raises FieldError.

    A box belongs to the person of its name; boxes with other names are those of the others, from left to right. Places
    that the script says itself stay. Without any box the engine divides the picture.
    """
    if not script.strip():
        raise FieldError("script", "Write a script, with lines such as: Anna: Hello.")
    if len(script) > MOST_SCRIPT - 1000:
        raise FieldError("script", f"The script has {len(script)} characters: give at most {MOST_SCRIPT - 1000}.")
    names, boxed = names_of(script), [one for one in people if one.box is not None]
    if not boxed or not names:
        return script.strip()
    if len(boxed) != len(names):
        those = "1 person" if len(names) == 1 else f"{len(names)} people"
        boxes = "1 box" if len(boxed) == 1 else f"{len(boxed)} boxes"
        raise FieldError(
            "people", f"The script has {those} ({', '.join(names)[:200]}), the picture {boxes}: give each person one."
        )
    places = _places(names, boxed)
    lines, declared = script.strip().splitlines(), False
    for index, line in enumerate(lines):
        if match := _DECLARED.match(line.strip()):
            declared = True
            if not re.search(r"\sbox=", line):
                lines[index] = f"{line.rstrip()} {places[match[1].lower()]}"
    return "\n".join(lines if declared else [*(f"@{name} {places[name.lower()]}" for name in names), *lines])


def _places(names: Sequence[str], boxed: Sequence[Person]) -> dict[str, str]:
    """Return name in lower case -> the words of its place."""
    rest = list(boxed)
    own: dict[str, Person] = {}
    for name in names:
        named = next((one for one in rest if one.name.strip().lower() == name.lower()), None)
        if named is not None:
            rest.remove(named)
            own[name.lower()] = named
    for name in names:
        if name.lower() not in own:
            own[name.lower()] = rest.pop(0)
    return {name: "box=" + ",".join(f"{edge:g}" for edge in one.box or ()) for name, one in own.items()}
