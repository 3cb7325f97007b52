"""Checks of untrusted provenance: its form, and suspicious values."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from engine.assembly.provenance import groups_of
from engine.data import Request
from engine.errors import RequestError
from engine.redaction import redact

#: Largest nesting depth; the engine writes less deep provenance.
MAX_DEPTH = 16
#: Maximum number of values; a config has about a hundred.
MAX_VALUES = 20_000

_OUTSIDE = re.compile(r"^(?:[/\\~]|[A-Za-z]:[/\\]|[A-Za-z][A-Za-z0-9+.-]*://)|(?:^|[/\\])\.\.(?:[/\\]|$)")
#: Places of free text, which are not file names.
_TEXTS = ("request.prompt", "request.script", "request.negative_prompt", "model_settings.negative_prompt")
#: Place -> the usual range of the value.
_USUAL: Mapping[str, tuple[float, float]] = {
    "request.frames": (1, 9_000),
    "request.fps": (1, 60),
    "sampler.steps": (1, 100),
    "sampler.shift": (0.1, 100),
    "guidance.text_scale": (0, 30),
    "guidance.audio_scale": (0, 30),
    "continuation.frames": (1, 77),
    "model_settings.window": (5, 161),
    "model_settings.fps": (5, 60),
    "video.crf": (0, 40),
    "video.audio_bitrate": (8_000, 1_000_000),
    "tile": (0, 4_096),
    "processes": (1, 64),
}
_SLOW_PRESETS = ("slower", "veryslow", "placebo")


def is_deep(value: Any) -> bool:
    """Return whether a JSON value is nested deeper, or has more parts, than provenance may have. Does not recurse."""
    level, parts = [value], 0
    for _ in range(MAX_DEPTH):
        below = [
            part
            for one in level
            if isinstance(one, dict | list)
            for part in (one.values() if isinstance(one, dict) else one)
        ]
        parts += len(below)
        if parts > MAX_VALUES:
            return True
        if not below:
            return False
        level = below
    return True


def check_form(provenance: Mapping[str, Any]) -> None:
    """Raise ValueError with the place if provenance does not have the form that `assembly.provenance` writes."""
    for place, text in _strings(provenance, ""):
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise ValueError(f"{place} contains a surrogate (half a character)")
        if "\0" in text:
            raise ValueError(f"{place} contains a zero byte")
    _require(provenance, "model", _is_text)
    _require(provenance, "dtype", _is_text)
    for group in groups_of(provenance):
        _require(provenance, group, lambda value: _is_text(value) or isinstance(value, Mapping))
    _require({"model_settings": provenance.get("model_settings", {})}, "model_settings", _is_settings)
    request = _part(provenance, "request")
    for key, fits in _REQUEST.items():
        _require(request, key, fits, "request.")
    for key in ("video", "soundtrack"):
        _require({key: request.get(key, False)}, key, lambda value: isinstance(value, bool), "request.")
    speakers = request["speakers"]
    for index, speaker in enumerate(speakers):
        place = f"request.speakers[{index}]."
        for key, fits in _SPEAKER.items():
            _require(speaker, key, fits, place)
    inputs = _part(provenance, "inputs")
    _require(inputs, "image", _is_text, "inputs.")
    _check_timelines(request, inputs)
    for key in ("voices", "masks"):
        _require(inputs, key, lambda value: _is_list(value, _is_text_or_none, len(speakers)), "inputs.")
    _require(provenance, "weights", _is_text)
    _require(provenance, "device", _is_text)
    _require(provenance, "attention", _is_text)
    for key in ("compile", "windows", "decode_dtype", "residual_dtype", "kernels"):
        if key in provenance:
            _require(provenance, key, _is_text)
    _require(provenance, "threads", _is_whole)
    versions = _part(provenance, "versions")
    for key in versions:
        _require(versions, key, _is_text, "versions.")
    _require({"made_again": provenance.get("made_again", [])}, "made_again", _is_made_again)
    for key in ("tile", "processes"):
        if key in provenance:
            _require(provenance, key, _is_whole)


def _check_timelines(request: Mapping[str, Any], inputs: Mapping[str, Any]) -> None:
    for key, known in (("prompts", ("from", "from_frame", "text")), ("images", ("from", "from_frame"))):
        for index, entry in enumerate(request.get(key, ())):
            place = f"request.{key}[{index}]"
            _require({place: entry}, place, partial(_is_entry, known=known))
    if len(request.get("images", ())) > 1:
        _require(inputs, "images", partial(_is_list, fits=_is_text, length=len(request["images"]) - 1), "inputs.")


def suspicious_values(provenance: Mapping[str, Any]) -> list[str]:
    """Return warnings about paths outside the weights folder and about unusual numbers in provenance."""
    warnings = [
        f"the provenance names a file or folder outside the weights folder: {text!r} ({place})"
        for place, text in _strings(provenance, "")
        if place not in _TEXTS and not place.startswith("request.prompts[") and _OUTSIDE.search(text)
    ]
    for place, value in _numbers(provenance, ""):
        low, high = _USUAL.get(place, (-1e9, 1e9))
        if not low <= value <= high:
            usual = f"; the usual range is {low:g} to {high:g}" if place in _USUAL else ""
            warnings.append(f"the provenance asks for {place}={value:g}{usual}")
    video = provenance.get("video")
    preset = video.get("preset") if isinstance(video, Mapping) else None
    if preset in _SLOW_PRESETS:
        warnings.append(f"the provenance asks for video.preset={preset}, which encodes many times more slowly")
    return warnings


def _part(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = values.get(key)
    if not isinstance(value, Mapping):
        raise ValueError(f"{key} is not a group of values")
    return value


def _require(values: Mapping[str, Any], key: str, fits: Callable[[Any], bool], place: str = "") -> None:
    if not isinstance(values, Mapping):
        raise ValueError(f"{place.rstrip('.')} is not a group of values")
    if key not in values:
        raise ValueError(f"{place}{key} is missing")
    if not fits(values[key]):
        raise ValueError(f"{place}{key} is {str(values[key])[:40]!r}")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_text_or_none(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def _is_made_again(value: Any) -> bool:
    keys = ("window", "seed")
    return _is_list(value, lambda one: isinstance(one, Mapping) and all(_is_whole(one.get(key)) for key in keys))


def _is_settings(value: Any) -> bool:
    """Return whether a value is a group whose lists and groups can be read as those of a model."""
    if not isinstance(value, Mapping):
        return False
    loras, buckets = value.get("loras", []), value.get("buckets", {})
    if not _is_list(loras, lambda one: isinstance(one, Mapping) and _is_text(one.get("file")) and "scale" in one):
        return False
    sizes = buckets.values() if isinstance(buckets, Mapping) else [None]
    return all(_is_list(size, _is_whole, 2) for size in sizes) and all(_is_number(one["scale"]) for one in loras)


def _is_entry(value: Any, known: Sequence[str]) -> bool:
    """Return whether a value is an entry of a timeline with a time."""
    if not isinstance(value, Mapping) or any(key not in known for key in value):
        return False
    if not _is_text(value.get("text", "")):
        return False
    return _is_number(value.get("from")) is not _is_whole(value.get("from_frame"))


def _is_list(value: Any, fits: Callable[[Any], bool], length: int | None = None) -> bool:
    return isinstance(value, list) and (length is None or len(value) == length) and all(map(fits, value))


_REQUEST: Mapping[str, Callable[[Any], bool]] = {
    "prompt": _is_text,
    "negative_prompt": _is_text_or_none,
    "seed": _is_whole,
    "frames": lambda value: value is None or _is_whole(value),
    "fps": lambda value: value is None or _is_number(value),
    "audio_type": _is_text,
    "timing": _is_text,
    "fit": _is_text,
    "speakers": lambda value: _is_list(value, lambda one: isinstance(one, Mapping)),
}
_SPEAKER: Mapping[str, Callable[[Any], bool]] = {
    "silence": lambda value: isinstance(value, bool),
    "mask": lambda value: isinstance(value, bool),
    "box": lambda value: value is None or _is_list(value, _is_number, 4),
}


def _strings(value: Any, place: str) -> Iterator[tuple[str, str]]:
    """Yield each text of provenance, including keys, with its place."""
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            below = f"{place}.{key}" if place else str(key)
            yield below, str(key)
            yield from _strings(part, below)
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from _strings(part, f"{place}[{index}]")


def _numbers(value: Any, place: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        for key, part in value.items():
            if place or key not in ("versions", "inputs", "format"):
                yield from _numbers(part, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from _numbers(part, f"{place}[{index}]")
    elif isinstance(value, int | float) and not isinstance(value, bool) and place.rpartition(".")[2] != "seed":
        try:
            yield place, float(value)
        except OverflowError:
            yield place, math.inf


def with_people(request: Request, provenance: Mapping[str, Any], voices: str, keep: str) -> Request:
    """Return `request` with the script or recording that its voices came from, unless the voices were given."""
    recorded = provenance["request"]
    if bool(voices) and "people" not in recorded:
        raise RequestError("it was not made from one recording", field="request.voices", hint="remove --voices")
    if request.speakers:
        if voices:
            raise RequestError("voices and audio are both given", field="request.voices", hint="give one of them")
        return request
    if "script" in recorded:
        return replace(request, script=str(recorded["script"]), keep_voices=keep)
    if not voices:
        hint = "give the recording again with --voices FILE"
        raise RequestError("no recording", field="request.voices", hint=hint)
    # Each person has a box, or nobody has one.
    boxes = tuple(tuple(one["box"]) for one in provenance["request"]["speakers"] if one["box"])
    return replace(request, voices=voices, people=int(recorded["people"]), boxes=boxes, keep_voices=keep)


def with_sound(request: Request, provenance: Mapping[str, Any], soundtrack: str) -> Request:
    """Return `request` with the sound that was heard instead of the voices. Raises RequestError unless it had one."""
    if bool(soundtrack) is bool(provenance["request"].get("soundtrack")):
        return replace(request, soundtrack=soundtrack)
    what = "it was made without a soundtrack" if soundtrack else "it was made with a soundtrack"
    hint = "remove --soundtrack" if soundtrack else "give the soundtrack again with --soundtrack FILE"
    raise RequestError(what, field="request.soundtrack", hint=hint)


def other_sound(then: Mapping[str, Any], now: Mapping[str, Any], request: Request) -> list[str]:
    """Return a warning if the soundtrack's hash in the inputs of `now` is not that of `then`."""
    if then.get("soundtrack") == now.get("soundtrack"):
        return []
    return [f"{redact(request.soundtrack)} is not the soundtrack that the video was made with"]
