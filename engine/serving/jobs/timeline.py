"""The schemas `prompts: [{from | from_frame, text}]` and `images: [{from | from_frame, image}]` -> Cue."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.data import Cue
from engine.errors import ConfigError, RequestError
from engine.serving.jobs.entries import Form, address_of, entries_of, only, read_entries, shown

#: Field of a request -> the key of a value in its entries.
VALUES = {"prompts": "text", "images": "image"}
_FORMS = {
    "prompts": Form("prompts", 'such as prompts: [{from: 0, text: "she talks"}, {from: 3.2, text: "she smiles"}]'),
    "images": Form("images", "such as images: [{from: 0, image: a.png}, {from: 3.2, image: b.png}]"),
}
#: A time on the command line: seconds, or a frame with an f.
_TIME = re.compile(r"(?:(?P<seconds>\d{1,9}(?:\.\d{0,9})?|\.\d{1,9})s?|(?P<frame>\d{1,9})f)")


def read_timeline(source: str, field: str) -> tuple[Cue, ...]:
    """Read the list `field`, "prompts" or "images", from a YAML or JSON file, or from `source` if it is a JSON object.

    Relative paths in a file are relative to its folder. Raises RequestError with the entry and key that are wrong.
    """
    entries, folder = read_entries(source, _FORMS[field])
    return parse_timeline(entries, field, folder=folder)


def parse_timeline(entries: Any, field: str, *, folder: Path | None = None) -> tuple[Cue, ...]:
    """Turn plain values into the entries of a timeline; the engine checks their order. Raises RequestError."""
    found = entries_of(entries, _FORMS[field])
    return tuple(_cue(entry, field, f"{_FORMS[field].field}[{index}]", folder) for index, entry in enumerate(found))


def timeline_text(field: str, entries: Sequence[tuple[str, str]]) -> str:
    """Return entries of the command line, (time, value) each, as JSON text for `read_timeline`.

    A time is in seconds, such as 3.2, or a frame such as 80f. Raises ConfigError for another time.
    """
    document = []
    for time, value in entries:
        found = _TIME.fullmatch(time)
        if found is None:
            raise ConfigError(
                f"{time[:40]!r} is not a time",
                field=f"--{field.removesuffix('s')}-at",
                hint="give seconds such as 3.2, or a frame such as 80f, and then the value",
            )
        begin = {"from": float(found["seconds"])} if found["seconds"] else {"from_frame": int(found["frame"])}
        document.append({**begin, VALUES[field]: value})
    return json.dumps({field: document})


def plain_timeline(cues: Sequence[Cue], field: str) -> list[dict[str, Any]]:
    """Return the entries as plain values, from which `parse_timeline` makes the same."""
    return [
        {**({"from": cue.seconds} if cue.frame is None else {"from_frame": cue.frame}), VALUES[field]: cue.value}
        for cue in cues
    ]


def _cue(entry: Any, field: str, where: str, folder: Path | None) -> Cue:
    form, key = _FORMS[field], VALUES[field]
    if not isinstance(entry, Mapping):
        raise RequestError(f"{shown(entry)} is not a mapping", field=where, hint=form.example)
    only(entry, ("from", "from_frame", key), where)
    if key not in entry:
        raise RequestError(f"there is no {key}", field=f"{where}.{key}", hint=form.example)
    value = entry[key]
    if field == "images":
        value = address_of(value, f"{where}.{key}", folder)
    elif not isinstance(value, str):
        raise RequestError(f"{shown(value)} is not text", field=f"{where}.{key}", hint="put it in quotes")
    seconds, frame = entry.get("from"), entry.get("from_frame")
    for name, begin, whole in (("from", seconds, False), ("from_frame", frame, True)):
        number = isinstance(begin, int | float) and not isinstance(begin, bool) and math.isfinite(begin)
        if begin is not None and (not number or (whole and begin != int(begin))):
            hint = "give a frame, a whole number" if whole else "give seconds, a number"
            raise RequestError(f"{shown(begin)} is not a time", field=f"{where}.{name}", hint=hint)
    return Cue(value, None if seconds is None else float(seconds), None if frame is None else int(frame))
