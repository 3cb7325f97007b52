"""The schema `speakers: [{audio | silence, region: auto | {box} | {mask}, start, duration, ...}]` -> Speaker."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from engine.data import Region, Speaker
from engine.errors import RequestError
from engine.media.excerpts import KEYS, check_values
from engine.serving.jobs.document_bounds import MOST_BYTES, check_bounds
from engine.text.similar import similar

#: The word in place of a voice for a silent person.
SILENCE = "silence"

_FIELD = "request.speakers"
#: Most bytes of a YAML file, which is read far more slowly than JSON.
_MOST_YAML = 2**20
_EXAMPLE = "such as speakers: [{audio: anna.wav, region: {box: [0, 0, 0.5, 1]}}, {silence: true}]"


def read_speakers(source: str) -> tuple[Speaker, ...]:
    """Read `speakers` from a YAML or JSON file, or from `source` itself if it is a JSON object.

    Relative paths in a file are relative to its folder. Raises RequestError with the entry and key that are wrong.
    """
    if source.lstrip().startswith("{"):
        return _parse(source, "the text", None)
    path = Path(source)
    try:
        with path.open("rb") as file:
            raw = file.read(MOST_BYTES + 1)
        if len(raw) > MOST_BYTES:
            raise RequestError(f"{source!r} has more than {MOST_BYTES} bytes", field=_FIELD, hint=_EXAMPLE)
        text = raw.decode("utf-8")
    except OSError as error:
        raise RequestError(f"cannot read {source!r}: {error.strerror}", field=_FIELD, hint=_EXAMPLE) from error
    except UnicodeDecodeError as error:
        raise RequestError(f"{source!r} is not UTF-8 text", field=_FIELD, hint="give a YAML or JSON file") from error
    return _parse(text, repr(source), path.parent)


def parse_speakers(entries: Any, *, folder: Path | None = None) -> tuple[Speaker, ...]:
    """Turn plain values into speakers; relative paths are relative to `folder`, or unchanged without one.

    Raises RequestError with the entry and key that are wrong.
    """
    if not isinstance(entries, Sequence) or isinstance(entries, str) or not entries:
        raise RequestError("not a list with at least one entry", field="speakers", hint=_EXAMPLE)
    return tuple(_speaker(entry, f"speakers[{index}]", folder) for index, entry in enumerate(entries))


def _speaker(entry: Any, where: str, folder: Path | None) -> Speaker:
    if not isinstance(entry, Mapping):
        raise RequestError(f"{_shown(entry)} is not a mapping", field=where, hint=_EXAMPLE)
    _only(entry, ("audio", "silence", "region", *KEYS), where)
    audio, silence = entry.get("audio"), entry.get("silence", False)
    if not isinstance(silence, bool):
        raise RequestError(
            f"{_shown(silence)} is neither true nor false", field=f"{where}.silence", hint="silence: true"
        )
    if (audio is None) is not silence:
        what = "both audio and silence" if silence else "neither audio nor silence"
        raise RequestError(f"there is {what}", field=where, hint="give one of audio: FILE and silence: true")
    address = None if audio is None else _address(audio, f"{where}.audio", folder)
    values = {key: entry.get(key) for key in KEYS}
    check_values(values, lambda key, what, hint: RequestError(what, field=f"{where}.{key}", hint=hint))
    return Speaker(address, _region(entry.get("region", "auto"), f"{where}.region", folder), **values)


def _region(value: Any, where: str, folder: Path | None) -> Region:
    if value in ("auto", None):
        return Region()
    if not isinstance(value, Mapping) or len(value) != 1:
        raise RequestError(
            f"{_shown(value)} is not a region", field=where, hint="auto, {box: [x0, y0, x1, y1]} or {mask: FILE}"
        )
    _only(value, ("box", "mask"), where)
    if "mask" in value:
        return Region(mask=_address(value["mask"], f"{where}.mask", folder))
    return Region(box=_box(value["box"], f"{where}.box"))


def _box(value: Any, where: str) -> tuple[float, float, float, float]:
    hint = "[x0, y0, x1, y1] with x0 < x1 and y0 < y1, in pixels or as fractions of the picture"
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 4:
        raise RequestError(f"{_shown(value)} is not four numbers", field=where, hint=hint)
    for index, number in enumerate(value):
        if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
            raise RequestError(f"{_shown(number)} is not a number", field=f"{where}[{index}]", hint=hint)
    x0, y0, x1, y1 = (float(number) for number in value)
    if x0 >= x1 or y0 >= y1:
        raise RequestError(f"the box {list(value)} is empty", field=where, hint=hint)
    return x0, y0, x1, y1


def _address(value: Any, where: str, folder: Path | None) -> str:
    if not isinstance(value, str) or not value:
        raise RequestError(
            f"{_shown(value)} is not an address", field=where, hint="a path or an address with its scheme"
        )
    has_scheme = value.startswith("data:") or re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", value)
    return value if has_scheme or folder is None else str(folder / value)


def _only(entry: Mapping[Any, Any], known: Sequence[str], where: str) -> None:
    for key in entry:
        if key not in known:
            near = similar(str(key), known)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
            raise RequestError(f"unknown key {_shown(key)}", field=where or "speakers", hint=hint)


def _parse(text: str, name: str, folder: Path | None) -> tuple[Speaker, ...]:
    try:
        data = json.loads(text)
    except ValueError:
        data = _yaml(text, name)
    except RecursionError:
        raise _nested(name) from None
    # With YAML aliases a few lines can become a value that is too large to print.
    check_bounds(data, field=_FIELD)
    if not isinstance(data, Mapping) or "speakers" not in data:
        raise RequestError(f"{name} has no list 'speakers'", field=_FIELD, hint=_EXAMPLE)
    _only(data, ("speakers",), "")
    return parse_speakers(data["speakers"], folder=folder)


def _yaml(text: str, name: str) -> Any:
    if len(text) > _MOST_YAML:
        what = f"{name} is not JSON, and too long to be read as YAML ({len(text)} characters)"
        raise RequestError(what, field=_FIELD, hint=_EXAMPLE)
    try:
        return yaml.safe_load(text)
    except RecursionError:
        raise _nested(name) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" in line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "unreadable"
        raise RequestError(f"{name} is neither YAML nor JSON: {problem}{place}", field=_FIELD, hint=_EXAMPLE) from error


def _nested(name: str) -> RequestError:
    return RequestError(f"{name} is nested too deeply", field=_FIELD, hint=_EXAMPLE)


def _shown(value: Any) -> str:
    """Quote a value, at most 80 characters of it."""
    text = repr(value[:80] if isinstance(value, str) else value)
    return text if len(text) <= 80 else f"{text[:77]}..."
