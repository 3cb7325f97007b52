"""The schema `speakers: [{audio | silence, region: auto | {box} | {mask}, start, duration, ...}]` -> Speaker."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.data import Region, Speaker
from engine.errors import RequestError
from engine.media.excerpts import KEYS, check_values
from engine.serving.jobs.entries import Form, address_of, entries_of, only, read_entries, shown

#: The word in place of a voice for a silent person.
SILENCE = "silence"

Box = tuple[float, float, float, float]

_EXAMPLE = "such as speakers: [{audio: anna.wav, region: {box: [0, 0, 0.5, 1]}}, {silence: true}]"
_FORM = Form("speakers", _EXAMPLE)


def read_speakers(source: str) -> tuple[Speaker, ...]:
    """Read `speakers` from a YAML or JSON file, or from `source` itself if it is a JSON object.

    Relative paths in a file are relative to its folder. Raises RequestError with the entry and key that are wrong.
    """
    entries, folder = read_entries(source, _FORM)
    return parse_speakers(entries, folder=folder)


def parse_speakers(entries: Any, *, folder: Path | None = None) -> tuple[Speaker, ...]:
    """Turn plain values into speakers; relative paths are relative to `folder`, or unchanged without one.

    Raises RequestError with the entry and key that are wrong.
    """
    found = entries_of(entries, _FORM)
    return tuple(_speaker(entry, f"{_FORM.field}[{index}]", folder) for index, entry in enumerate(found))


def read_boxes(source: str) -> tuple[Box, ...]:
    """Return the boxes of a JSON list of lists of four numbers. Raises RequestError with the box that is wrong."""
    hint = "such as --boxes [[0,0,0.5,1],[0.5,0,1,1]]"
    try:
        boxes = json.loads(source)
    except (ValueError, RecursionError) as error:
        raise RequestError("it is not JSON", field="request.boxes", hint=hint) from error
    if not isinstance(boxes, list):
        raise RequestError(f"{shown(boxes)} is not a list of boxes", field="request.boxes", hint=hint)
    return parse_boxes(boxes)


def parse_boxes(boxes: Sequence[Any]) -> tuple[Box, ...]:
    """Return plain values as boxes. Raises RequestError with the box that is wrong."""
    return tuple(_box(box, f"request.boxes[{index}]") for index, box in enumerate(boxes))


def _speaker(entry: Any, where: str, folder: Path | None) -> Speaker:
    if not isinstance(entry, Mapping):
        raise RequestError(f"{shown(entry)} is not a mapping", field=where, hint=_EXAMPLE)
    only(entry, ("audio", "silence", "region", *KEYS), where)
    audio, silence = entry.get("audio"), entry.get("silence", False)
    if not isinstance(silence, bool):
        raise RequestError(
            f"{shown(silence)} is neither true nor false", field=f"{where}.silence", hint="silence: true"
        )
    if (audio is None) is not silence:
        what = "both audio and silence" if silence else "neither audio nor silence"
        raise RequestError(f"there is {what}", field=where, hint="give one of audio: FILE and silence: true")
    address = None if audio is None else address_of(audio, f"{where}.audio", folder)
    values = {key: entry.get(key) for key in KEYS}
    check_values(values, lambda key, what, hint: RequestError(what, field=f"{where}.{key}", hint=hint))
    return Speaker(address, _region(entry.get("region", "auto"), f"{where}.region", folder), **values)


def _region(value: Any, where: str, folder: Path | None) -> Region:
    if value in ("auto", None):
        return Region()
    if not isinstance(value, Mapping) or len(value) != 1:
        raise RequestError(
            f"{shown(value)} is not a region", field=where, hint="auto, {box: [x0, y0, x1, y1]} or {mask: FILE}"
        )
    only(value, ("box", "mask"), where)
    if "mask" in value:
        return Region(mask=address_of(value["mask"], f"{where}.mask", folder))
    return Region(box=_box(value["box"], f"{where}.box"))


def _box(value: Any, where: str) -> Box:
    hint = "[x0, y0, x1, y1] with x0 < x1 and y0 < y1, in pixels or as fractions of the picture"
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 4:
        raise RequestError(f"{shown(value)} is not four numbers", field=where, hint=hint)
    for index, number in enumerate(value):
        if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
            raise RequestError(f"{shown(number)} is not a number", field=f"{where}[{index}]", hint=hint)
    x0, y0, x1, y1 = (float(number) for number in value)
    if x0 >= x1 or y0 >= y1:
        raise RequestError(f"the box {list(value)} is empty", field=where, hint=hint)
    return x0, y0, x1, y1
