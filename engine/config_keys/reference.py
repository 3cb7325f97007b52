"""Every key that the composed config can have, from the schema and from the configs of the installed components."""

from __future__ import annotations

import json
import re
import types
import typing
from collections.abc import Iterator
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import Field, dataclass, fields, is_dataclass
from dataclasses import field as dataclass_field
from functools import cache
from typing import Any

from hydra.core.config_store import ConfigNode, ConfigStore
from omegaconf import MISSING, OmegaConf

from engine.config import Config
from engine.config_keys.meanings import meanings
from engine.plugin.manager import installed
from engine.redaction import named_secret


@dataclass(frozen=True)
class Key:
    """One key of the config, as `multitalk config` and docs/config.md show it."""

    #: Such as "sampler.steps". NAME is any name in a table, [] any entry of a list.
    name: str
    #: Choice that adds the key, such as "sink=s3"; "": every config of the group has it.
    choice: str
    #: Type of the value in words.
    type: str
    #: The schema's default, unresolved; omegaconf.MISSING if a preset or the user must set the value.
    default: Any = dataclass_field(hash=False)
    #: Smallest and largest allowed number; None: no range is declared.
    within: tuple[float, float] | None
    #: Allowed words; empty: any text.
    words: tuple[str, ...]
    meaning: str
    secret: bool = False
    #: Whether the key has keys below it: a group, or a table or list of groups.
    group: bool = False

    @property
    def allowed(self) -> str:
        """The allowed values in words; "" if nothing is declared."""
        numbers = f"{_number(self.within[0])} to {_number(self.within[1])}" if self.within else ""
        return " or ".join(filter(None, (numbers, ", ".join(f'"{word}"' for word in self.words))))

    @property
    def default_text(self) -> str:
        """The default in words: a value, a reference to another key, or an environment variable."""
        return "" if self.group else _default(self.default)


@cache
def keys() -> tuple[Key, ...]:
    """Return all keys in the order of the schema; the keys of a group's components follow its own keys."""
    return tuple(_all())


def choices_of(group: str) -> dict[str, type]:
    """Return the config class of each component that can be chosen in a group, by the component's name."""
    installed()
    nodes = ConfigStore.instance().repo.get(group, {})
    kinds = {}
    for entry, node in sorted(nodes.items()):
        if isinstance(node, ConfigNode) and entry != "schema.yaml":
            kinds[entry.removesuffix(".yaml")] = OmegaConf.get_type(node.node)
    return {name: kind for name, kind in kinds.items() if kind is not None and is_dataclass(kind)}


def provider_of(group: str, name: str) -> str:
    """Return the module that offers the component `name` of a group; "engine" for the engine's own."""
    return ConfigStore.instance().repo[group][f"{name}.yaml"].provider or "engine"


def group_about(group: str) -> str:
    """Return what a group, a field of the whole config, is for."""
    return meanings(Config)[group]


def _all() -> Iterator[Key]:
    hints = typing.get_type_hints(Config)
    for field in fields(Config):
        kind = _dataclass_in(hints[field.name])
        yield _key(field, field.name, "", hints[field.name], meanings(Config)[field.name])
        if kind is None:
            continue
        shared = {own.name for own in fields(kind)}
        yield from _below(kind, field.name, "")
        for name, own in choices_of(field.name).items():
            yield from _below(own, field.name, f"{field.name}={name}", leave_out=shared)


def _below(kind: Any, prefix: str, choice: str, leave_out: typing.Collection[str] = ()) -> Iterator[Key]:
    hints, texts = typing.get_type_hints(kind), meanings(kind)
    for field in fields(kind):
        if field.name in leave_out:
            continue
        name, hint = f"{prefix}.{field.name}", hints[field.name]
        yield _key(field, name, choice, hint, texts[field.name])
        below = _dataclass_in(hint)
        # An entrypoint refers to other parts of the config, which are listed under their own names.
        if below is not None and not prefix.startswith("entrypoint"):
            origin = typing.get_origin(hint)
            step = {list: "[]", dict: ".NAME"}.get(origin, "") if origin else ""
            yield from _below(below, f"{name}{step}", choice)


def _key(field: Field[Any], name: str, choice: str, hint: Any, meaning: str) -> Key:
    default = MISSING
    if field.default is not NO_DEFAULT:
        default = field.default
    elif field.default_factory is not NO_DEFAULT:
        default = field.default_factory()
    return Key(
        name=name,
        choice=choice,
        type=_type(hint),
        default=default,
        within=field.metadata.get("within"),
        words=field.metadata.get("one_of", ()),
        meaning=meaning,
        secret=field.metadata.get("secret", False) or named_secret(field.name),
        group=_dataclass_in(hint) is not None,
    )


def _dataclass_in(hint: Any) -> Any:
    """Return the dataclass in a type hint, alone or in a list or table; None if there is none."""
    parts = [hint, *typing.get_args(hint)]
    return next((part for part in parts if isinstance(part, type) and is_dataclass(part)), None)


def _type(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " | ".join(_type(part) for part in arguments)
    if origin is list:
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return f"table of {_type(arguments[1])}"
    if is_dataclass(hint):
        return "group"
    return {int: "int", float: "float", bool: "bool", str: "text", types.NoneType: "null"}.get(hint, str(hint))


def _default(value: Any) -> str:
    if value == MISSING and isinstance(value, str):
        return "none: it must be given"
    if isinstance(value, str) and (match := re.fullmatch(r"\$\{oc\.env:(\w+),(.*)\}", value)):
        other = match[2].strip("'\"")
        return f"`${match[1]}`, else {f'`{other}`' if other else 'empty'}"
    if isinstance(value, str) and "${" in value:
        return f"`{value}`"
    if isinstance(value, list) and any("${" in str(part) for part in value):
        return ", ".join(_default(part) for part in value)
    if value == "":
        return "empty"
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def _number(value: float) -> str:
    if float(value).is_integer() and abs(value) < 2**70:
        return str(int(value))
    return f"{value:g}"
