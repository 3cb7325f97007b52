"""Where in the engine, or in a library of networks, something happens."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from types import FrameType

#: Frames of these are named as the place where something happens; the rehearsal's own are not.
_PLACES = ("engine/", "plugins/", "diffusers/", "transformers/", "torchao/", "peft/")
_OWN = "engine/rehearsal/"
_ROOT = f"{Path(__file__).parents[2]}/"


def where() -> str:
    """Return file:line of the nearest caller in the engine, a plugin or a library of networks."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if found := place_of(frame, frame.f_lineno):
            return found
        frame = frame.f_back
    return "?"


def place_of(frame: FrameType, line: int) -> str:
    """Return "file:line function", empty where the frame is none of the engine's or those libraries'."""
    name = _named(frame.f_code.co_filename)
    return f"{name}:{line} {frame.f_code.co_name}" if name else ""


@cache
def _named(file: str) -> str:
    """Return a file's name from its top package on, empty where places are not named by it."""
    name = file.rpartition("/site-packages/")[2].removeprefix(_ROOT)
    return name if name.startswith(_PLACES) and not name.startswith(_OWN) else ""
