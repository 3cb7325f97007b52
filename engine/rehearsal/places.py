"""Find the place in the engine, or in a library of networks, where something happens."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from types import FrameType

#: Packages whose frames count as the place of an event; the rehearsal's own frames do not.
_PLACES = ("engine/", "plugins/", "diffusers/", "transformers/", "torchao/", "peft/")
_OWN = "engine/rehearsal/"
_ROOT = f"{Path(__file__).parents[2]}/"


def where() -> str:
    """Return file:line of the nearest caller in the engine, a plugin or a library of networks."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if place := place_of(frame, frame.f_lineno):
            return place
        frame = frame.f_back
    return "?"


def place_of(frame: FrameType, line: int) -> str:
    """Return "file:line function"; "" if the frame belongs neither to the engine nor to those libraries."""
    name = _source_name(frame.f_code.co_filename)
    return f"{name}:{line} {frame.f_code.co_name}" if name else ""


@cache
def _source_name(file: str) -> str:
    """Return a file's name from its top package on; "" for a file of another package."""
    name = file.rpartition("/site-packages/")[2].removeprefix(_ROOT)
    return name if name.startswith(_PLACES) and not name.startswith(_OWN) else ""
