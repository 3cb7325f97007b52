"""Where the people of a picture are, as the boxes with which the studio begins."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from engine.errors import EngineError
from engine.media.picture import read_picture
from engine.people import find_people
from engine.serving.studio.fields import MOST_PEOPLE, Box, Person, equal_boxes, read_box


def found_boxes(picture: str, *, drawn: bool) -> list[Box]:
    """Return a box for each person who is found in a picture, from left to right, at most `MOST_PEOPLE`.

    Drawn people are looked for if `drawn`, else people of photographs, if the extra `people` is installed. A single
    person is the whole picture, as the engine has it. Empty if nobody is found, or the picture cannot be read.
    """
    with suppress(EngineError):
        people = find_people(read_picture(Path(picture), field="picture"), "drawn" if drawn else "faces")
        boxes = [box for person in people[:MOST_PEOPLE] if (box := read_box(person.box)) is not None]
        return equal_boxes(1) if len(boxes) == 1 else boxes
    return []


def named_boxes(boxes: Sequence[Box]) -> list[dict[str, Any]]:
    """Return boxes with names, as the box editor has them."""
    return [{"name": f"Person {number}", "box": list(box)} for number, box in enumerate(boxes, 1)]


def people_of(entries: Any) -> list[tuple[str, Box | None]]:
    """Return name and box of each entry of the box editor, from left to right.

    Boxes that are the equal parts are None: the engine makes the same ones. The entries come from a browser, so what
    is no box is left out.
    """
    found = [
        (str(entry.get("name") or "")[:40], box)
        for entry in (entries if isinstance(entries, list) else [])[:MOST_PEOPLE]
        if isinstance(entry, dict) and (box := read_box(entry.get("box"))) is not None
    ]
    found.sort(key=lambda one: one[1][0] + one[1][2])
    equal = [box for _, box in found] == equal_boxes(len(found)) if found else False
    return [(name, None if equal else box) for name, box in found]


def with_names(entries: Any, names: Sequence[str]) -> list[dict[str, Any]] | None:
    """Return the entries of the box editor with the names of a script's people; None: they stay as they are.

    Boxes that have names of their own stay, and equal parts become as many as there are people.
    """
    people = people_of(entries)
    if len(people) != len(names) and all(box is None for _, box in people) and 1 <= len(names) <= MOST_PEOPLE:
        return editor_people([Person(name) for name in names])
    if len(people) != len(names):
        return None
    given = [
        Person(new if re.fullmatch(r"Person \d|", old) else old, box)
        for (old, box), new in zip(people, names, strict=True)
    ]
    return None if [one.name for one in given] == [name for name, _ in people] else editor_people(given)


def editor_people(people: Sequence[Person]) -> list[dict[str, Any]]:
    """Return the entries of the box editor for people of a form."""
    equal = equal_boxes(len(people)) if people else []
    return [
        {"name": person.name or f"Person {number}", "box": list(person.box or part)}
        for number, (person, part) in enumerate(zip(people, equal, strict=True), 1)
    ]
