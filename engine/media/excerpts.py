"""Which part of a voice file is used: `start`, `duration`, `delay`, `track`, `channel`, as fields or after a `#`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from engine.data import Speaker
from engine.errors import RequestError

#: The fields of a speaker that choose a part of the file, and when it is heard.
KEYS = ("start", "duration", "delay", "track", "channel")
#: Channels with a name.
CHANNELS = {"left": 1, "right": 2}
#: Limits in seconds: a day into a file, an hour of silence before a voice.
MOST_SECONDS, MOST_DELAY = 86_400.0, 3_600.0
MOST_TRACK, MOST_CHANNEL = 1_000, 256

_HINTS = {
    "start": f"seconds into the file, 0 to {MOST_SECONDS:g}",
    "duration": f"the seconds to take, above 0, at most {MOST_SECONDS:g}",
    "delay": f"seconds of silence before the voice, 0 to {MOST_DELAY:g}",
    "track": f"the number of the audio track, 1 to {MOST_TRACK}",
    "channel": f"left, right, or the number of the channel, 1 to {MOST_CHANNEL}",
}
#: Examples of these after an address.
EXAMPLE = "such as call.wav#left, film.mp4#track=2 or talk.mp3#start=3,duration=10"


def check_values(values: Mapping[str, Any], refuse: Callable[[str, str, str], RequestError]) -> None:
    """Raise `refuse(key, what is wrong, hint)` for an invalid value; None means not set."""
    for key, value in values.items():
        if value is not None and not _fits(key, value):
            raise refuse(key, f"{value!r} is not possible", f"give {_HINTS[key]}")


def values_of(speaker: Speaker) -> dict[str, Any]:
    """Return the fields of `speaker` by key; None for those that are not set."""
    return {key: getattr(speaker, key) for key in KEYS}


def split_address(address: str) -> tuple[str, dict[str, Any]]:
    """Split an address at its last `#` into the address itself and values of `KEYS`.

    Recognised are `#left`, `#right`, `#2` (the track) and `key=value`, joined by `&` or commas. If one of the words is
    something else, everything belongs to the address. Values are returned unchecked; see `check_values`.
    """
    base, mark, words = address.rpartition("#")
    if not mark or not base or not words or len(words) > 200:
        return address, {}
    values: dict[str, Any] = {}
    for word in re.split("[&,]", words):
        key, equals, text = word.partition("=")
        if not equals:
            key, text = ("track", word) if re.fullmatch(r"[0-9]{1,4}", word) else ("channel", word)
            if key == "channel" and word not in CHANNELS:
                return address, {}
        if key not in KEYS or key in values:
            return address, {}
        values[key] = _value(key, text)
    return base, values


def channel_number(channel: str | int | None) -> int | None:
    """Return the number of a channel, counted from 1; None means all."""
    return CHANNELS[channel] if isinstance(channel, str) else channel


def _value(key: str, text: str) -> Any:
    if key in ("track", "channel") and re.fullmatch(r"[0-9]{1,9}", text):
        return int(text)
    if key in ("track", "channel"):
        return text
    try:
        return float(text)
    except ValueError:
        return text


def _fits(key: str, value: Any) -> bool:
    if key == "channel" and isinstance(value, str):
        return value in CHANNELS
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return False
    match key:
        case "start":
            return 0 <= value <= MOST_SECONDS
        case "duration":
            return 0 < value <= MOST_SECONDS
        case "delay":
            return 0 <= value <= MOST_DELAY
        case "track":
            return isinstance(value, int) and 1 <= value <= MOST_TRACK
    return isinstance(value, int) and 1 <= value <= MOST_CHANNEL
