"""Check the values of a config against what their fields declare (`within`, `one_of` in `engine.config.ranges`)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from engine.config import Config
from engine.errors import ConfigError

#: The range of a number whose field declares none; no key needs a larger number.
ANY = (-(2.0**53), 2.0**53)


def check_numbers(config: Config) -> None:
    """Raise ConfigError, naming the key, for the first number or word that its key does not allow.

    A number must be finite and within its key's range; a text must be one of its key's words, if the key has some.
    Values of `request` are not checked here: `engine.stages.read.check_request` checks requests from every source.
    """
    for field in fields(config):
        if field.name != "request":
            _check_value(getattr(config, field.name), field.name, field.metadata)


def check_part(part: object, key: str) -> None:
    """Check one part of a config, the dataclass at `key`, against its own ranges. Raises as `check_numbers`."""
    _check_value(part, key, {})


def _check_value(value: object, key: str, metadata: Mapping[Any, Any]) -> None:
    if isinstance(value, bool):
        return
    if isinstance(value, int | float):
        _check_range(value, key, *metadata.get("within", ANY))
    elif isinstance(value, str):
        check_word(value, key, metadata.get("one_of"))
    elif isinstance(value, Mapping):
        for name, part in value.items():
            _check_value(part, f"{key}.{name}", metadata)
    elif isinstance(value, list | tuple):
        for index, part in enumerate(value):
            _check_value(part, f"{key}[{index}]", metadata)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            part = getattr(value, field.name, None)
            # Dataclasses in an entrypoint are other parts of the config, which are checked under their own names.
            if not (key == "entrypoint" and is_dataclass(part)):
                _check_value(part, f"{key}.{field.name}", field.metadata)


def _check_range(value: float, key: str, least: float, most: float) -> None:
    if (isinstance(value, int) or math.isfinite(value)) and least <= value <= most:
        return
    raise ConfigError(
        f"{_number_text(value)} is out of range",
        field=key,
        hint=f"{_number_text(least)} to {_number_text(most)}",
        code="out_of_range",
    )


def check_word(value: str, key: str, words: tuple[str, ...] | None) -> None:
    """Raise ConfigError, naming the key, if its text is not one of `words`; None: any text is allowed."""
    if words is None or value in words:
        return
    hint = f"choose {', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else f"give a number, or {words[0]}"
    raise ConfigError(f"{value[:60]!r} is unknown", field=key, hint=hint)


def _number_text(value: float) -> str:
    # Python raises an error for an integer of more than 4300 digits as text, and for one above 308 digits as a float.
    if isinstance(value, int):
        return str(value) if abs(value) < 10**30 else "a number of more than 30 digits"
    return str(int(value)) if math.isfinite(value) and value.is_integer() and abs(value) < 1e16 else f"{value:g}"
