"""The words of the studio's form: its people, where voices come from, and an error at one of its fields."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

#: People that the form has places for: as many as a job may have.
MOST_PEOPLE = 8
SILENT, FILE = "silent", "file"
#: Where voices come from: a file for each person; one recording, in which each person has a channel or in which the
#: engine finds who speaks; a script that the engine speaks.
FILES, CHANNELS, FOUND, SCRIPT = "files", "channels", "found", "script"
SOURCES = (FILES, CHANNELS, FOUND, SCRIPT)
#: Characters of a script, as in the job API.
MOST_SCRIPT = 20_000

Box = tuple[float, float, float, float]


class FieldError(Exception):
    """A problem of one field of the form, as a sentence for the person who filled it in."""

    def __init__(self, field: str, text: str) -> None:
        """`field` is a field of `Form`, with `voice1`, `voice2` ... for those of people; "" for none."""
        super().__init__(text)
        self.field, self.text = field, text


@dataclass(frozen=True)
class Person:
    """One person in the picture."""

    name: str = ""
    #: x0, y0, x1, y1 as fractions of the picture; None: an equal part of it, from left to right.
    box: Box | None = None
    #: "file": `audio`; "silent"; or, for one recording, a number from 1 as text: the channel, or the place in the order
    #: in which the found speakers first speak.
    voice: str = FILE
    audio: str | None = None


def read_box(value: Any) -> Box | None:
    """Return four fractions that make a box inside the picture, or None for anything else."""
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 4:
        return None
    if not all(isinstance(one, int | float) and not isinstance(one, bool) and math.isfinite(one) for one in value):
        return None
    x0, y0, x1, y1 = (round(min(1.0, max(0.0, float(one))), 4) for one in value)
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def equal_boxes(count: int) -> list[Box]:
    """Return `count` equal parts of a picture, from left to right, as fractions of it: the engine's own `auto`."""
    return [(round(index / count, 4), 0.0, round((index + 1) / count, 4), 1.0) for index in range(count)]
