"""Check that a typed config has lists, groups and mappings where its fields require them; OmegaConf does not."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import lru_cache
from typing import Any, Union, get_args, get_origin, get_type_hints

from engine.errors import ConfigError


def check_shape(value: Any, place: str = "") -> None:
    """Raise ConfigError, naming the key, if a value is not the list, mapping or group that its field requires.

    OmegaConf accepts a text that looks like a reference (`lora.extra=${model.name}`, or such a text in quotes) for any
    of them.
    """
    kind: Any = type(value)
    hints = _hints(kind)
    for one in fields(value):
        below = f"{place}.{one.name}" if place else one.name
        _check(getattr(value, one.name), hints[one.name], below)


@lru_cache(maxsize=256)
def _hints(kind: Any) -> Mapping[str, Any]:
    return get_type_hints(kind)


def _check(value: Any, hint: Any, place: str) -> None:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        # In this schema a union is always "or None".
        if value is not None:
            for part in (part for part in arguments if part is not type(None)):
                _check(value, part, place)
    elif origin is list:
        _require(isinstance(value, list), value, place, "a list")
        for index, part in enumerate(value):
            _check(part, arguments[0], f"{place}[{index}]")
    elif origin is dict:
        _require(isinstance(value, dict), value, place, "a mapping")
        for key, part in value.items():
            _check(part, arguments[1], f"{place}.{key}")
    elif isinstance(hint, type) and is_dataclass(hint):
        _require(isinstance(value, hint), value, place, "a group")
        check_shape(value, place)


def _require(is_valid: bool, value: Any, place: str, kind: str) -> None:
    if not is_valid:
        raise ConfigError(f"{str(value)[:60]!r} is not {kind}", field=place, hint=f"give {kind}, or omit it")
