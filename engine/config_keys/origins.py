"""A composed config with the origin of each value."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from engine.assembly.compose import compose, translated
from engine.assembly.composition import CONF, compositions
from engine.assembly.typed_overrides import readable
from engine.config_keys.reference import Key, keys
from engine.redaction import HIDDEN, named_secret, named_secrets, redact

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

#: The innermost reference of a text.
_REFERENCE = re.compile(r"\$\{([\w.]+)\}")
_VARIABLE = re.compile(r"\$\{oc\.env:(\w+)")
#: Most references that are followed from one value; no config has a longer chain.
_MOST = 20


@dataclass(frozen=True)
class Origin:
    """The origin of a value."""

    #: "schema", "preset", "command line", "MULTITALK_OVERRIDES", "MULTITALK_RECIPE", "entrypoint" (its own overrides),
    #: or "default": the default choice of a group.
    source: str
    #: For a preset its "group/name", for an entrypoint its name; else "".
    name: str = ""
    #: The reference in the place of the value, such as "${model.fps}"; "": none.
    reference: str = ""
    #: Variables of the environment that the reference reads and that are set.
    environment: tuple[str, ...] = ()
    #: The origin of the value that a reference leads to.
    then: Origin | None = None

    def __str__(self) -> str:
        """Return the origin as one line of text."""
        text = f"{self.source} {self.name}".strip()
        if self.environment:
            return f"environment: {', '.join(self.environment)} (by {text})"
        if self.reference:
            text += f": {self.reference}"
        return text if self.then is None else f"{text} -> {self.then}"

    def as_json(self) -> dict[str, Any]:
        """Return the fields that are not empty, as plain values."""
        report: dict[str, Any] = {"source": self.source}
        if self.name:
            report["name"] = self.name
        if self.reference:
            report["reference"] = self.reference
        if self.environment:
            report["environment"] = list(self.environment)
        if self.then is not None:
            report["then"] = self.then.as_json()
        return report


@dataclass(frozen=True)
class Composed:
    """A composed and checked config as plain values without secrets, with the origin of each."""

    #: Dotted key -> value; a list is one value, and so is an empty table. Secrets and media are hidden.
    values: Mapping[str, Any]
    origins: Mapping[str, Origin]
    #: Group -> its choice, and the origin of the choice.
    choices: Mapping[str, tuple[str, Origin]]

    def tree(self) -> dict[str, Any]:
        """Return the values as nested tables."""
        tree: dict[str, Any] = {}
        for key, value in self.values.items():
            node = tree
            *parents, last = split(key)
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = value
        return tree


def trace(overrides_by_origin: Sequence[tuple[str, Origin]]) -> Composed:
    """Compose overrides, each with its origin, and find the origin of each value.

    Raises ConfigError as `engine.assembly.compose.compose` does.
    """
    overrides = [override for override, _ in overrides_by_origin]
    compose(overrides)  # checks everything
    lines = readable(overrides)
    composed = compositions().compose(lines)
    with translated(), hydra.initialize_config_module(CONF, version_base="1.3"):
        origins, choices = _layers(lines, [origin for _, origin in overrides_by_origin])
    hidden = _secrets(composed)
    values: dict[str, Any] = {}
    value_origins: dict[str, Origin] = {}
    for key, raw in _leaves(composed, ""):
        value_origins[key] = _trace_origin(key, raw, composed, origins, hidden)
        # References to whole groups are not resolved: the group is listed under its own name.
        value = OmegaConf.select(composed, escaped(key)) if _value(composed, key) else raw
        plain = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        values[key] = _hide(key, plain, hidden)
    return Composed(values, value_origins, choices)


def split(key: str) -> list[str]:
    """Return the parts of a dotted key; a dot inside a part is written as `\\\\.`."""
    return [part.replace("\\.", ".") for part in re.split(r"(?<!\\)\.", key)]


def escaped(key: str) -> str:
    """Return `key` in OmegaConf's syntax: a part with a dot is put in brackets."""
    first, *others = split(key)
    return first + "".join(f"[{part}]" if "." in part else f".{part}" for part in others)


def key_of(name: str, composed: Mapping[str, Any]) -> Key | None:
    """Return the reference's entry for a key of the composed config, for the chosen component."""
    parts = split(name)
    group = composed.get(parts[0])
    chosen = group.get("name", "") if isinstance(group, Mapping) else ""
    fits = [key for key in keys() if _same(parts, key.name)]
    return next((key for key in fits if key.choice in ("", f"{parts[0]}={chosen}")), None)


def _same(parts: Sequence[str], pattern: str) -> bool:
    pattern_parts = pattern.split(".")
    return len(parts) == len(pattern_parts) and all(
        a == b or b == "NAME" for a, b in zip(parts, pattern_parts, strict=True)
    )


def _layers(lines: Sequence[str], origins: Sequence[Origin]) -> tuple[dict[str, Origin], dict[str, tuple[str, Origin]]]:
    """Return the origin of each key, and the choice of each group with its origin, in Hydra's order."""
    loader = GlobalHydra.instance().config_loader()
    defaults = loader.compute_defaults_list("config", list(lines), RunMode.RUN)
    repository = loader.repository  # type: ignore[attr-defined]  # of ConfigLoaderImpl, the only loader there is
    origin_of: dict[str, Origin] = {}
    for entry in defaults.defaults:
        if entry.config_path is None or (entry.package or "").startswith("hydra") or "hydra/" in entry.config_path:
            continue
        layer = repository.load_config(entry.config_path)
        if layer is None:
            continue
        origin = Origin("schema") if layer.is_schema_source else Origin("preset", entry.config_path)
        prefix = f"{entry.package}." if entry.package else ""
        for key, value in _leaves(layer.config, prefix):
            if value != "???" and not key.startswith("hydra."):
                origin_of[key] = origin
    by_line = dict(zip(lines, origins, strict=True))
    for override in defaults.config_overrides:
        _override(override, by_line.get(override.input_line or "", Origin("command line")), origin_of)
    metadata = defaults.overrides.override_metadata
    choices = {}
    for group, name in defaults.overrides.known_choices.items():
        if group.startswith("hydra/") or name is None:
            continue
        chosen = metadata.get(group)
        if chosen is None:
            origin = Origin("default")
        elif chosen.external_override:
            line = next((line for line in reversed(lines) if line.partition("=")[0] == group), "")
            origin = by_line.get(line, Origin("command line"))
        else:
            origin = Origin("preset", str(chosen.containing_config_path))
        choices[group] = (str(name), origin)
    # Hydra processes its list from the end.
    return origin_of, dict(reversed(choices.items()))


def _override(override: Override, origin: Origin, origin_of: dict[str, Origin]) -> None:
    key = override.key_or_group
    for below in [below for below in origin_of if below.startswith(f"{key}.")]:
        del origin_of[below]
    origin_of[key] = origin


def _leaves(node: DictConfig, prefix: str) -> Iterator[tuple[str, Any]]:
    """Yield each key and its unresolved value; lists, empty tables and references to groups are single values."""
    for name in node:
        key = f"{prefix}{str(name).replace('.', chr(92) + '.')}"
        if OmegaConf.is_missing(node, name):
            yield key, "???"
            continue
        raw = node._get_node(name)
        if isinstance(raw, DictConfig) and not raw._is_interpolation() and not raw._is_none() and len(raw):
            yield from _leaves(raw, f"{key}.")
        else:
            yield key, OmegaConf.to_container(raw, resolve=False) if OmegaConf.is_list(raw) else _raw(raw)


def _raw(node: Any) -> Any:
    if OmegaConf.is_dict(node) and not node._is_interpolation() and not node._is_none():
        return {}
    return node._value()


def _value(composed: DictConfig, key: str) -> bool:
    """Return whether a key has a value or refers to one, and not to a group."""
    parent = composed
    *parents, last = split(key)
    for name in parents:
        parent = parent[name]
    if not OmegaConf.is_interpolation(parent, last):
        return True
    return not isinstance(parent[last], DictConfig)


def _trace_origin(
    key: str, raw: Any, composed: DictConfig, origins: Mapping[str, Origin], hidden: tuple[str, ...], depth: int = 0
) -> Origin:
    origin = _nearest(key, origins)
    text = raw if isinstance(raw, str) else str(raw) if isinstance(raw, list) else ""
    if "${" not in text or depth > _MOST:
        return origin
    variables = tuple(name for name in _VARIABLE.findall(text) if name in os.environ)
    inner = text
    while (match := _REFERENCE.search(inner)) and match[0] != inner:
        inner = inner.replace(match[0], str(OmegaConf.select(composed, match[1])))
    then = None
    if (whole := _REFERENCE.fullmatch(inner)) and OmegaConf.select(composed, whole[1]) is not None:
        parent, _, last = whole[1].rpartition(".")
        node = OmegaConf.select(composed, parent) if parent else composed
        below = node._get_node(last)
        then = _trace_origin(whole[1], None if below is None else below._value(), composed, origins, hidden, depth + 1)
    return Origin(origin.source, origin.name, redact(inner if whole else text, hidden), variables, then)


def _nearest(key: str, origins: Mapping[str, Origin]) -> Origin:
    parts = re.split(r"(?<!\\)\.", key)
    for end in range(len(parts), 0, -1):
        if origin := origins.get(".".join(parts[:end])):
            return origin
    return Origin("schema")


def _secrets(composed: DictConfig) -> tuple[str, ...]:
    """Return texts that must not be printed: secrets of the environment, and the values of secret keys."""
    values = (OmegaConf.select(composed, escaped(key)) for key, _ in _leaves(composed, "") if _is_secret(key))
    return (*named_secrets(os.environ), *(value for value in values if isinstance(value, str)))


def _is_secret(key: str) -> bool:
    return named_secret(split(key)[-1]) or any(entry.secret and _same(split(key), entry.name) for entry in keys())


def _hide(key: str, value: Any, secrets: tuple[str, ...]) -> Any:
    if isinstance(value, Mapping):
        return {name: _hide(f"{key}.{name}", part, secrets) for name, part in value.items()}
    if isinstance(value, list):
        return [_hide(key, part, secrets) for part in value]
    if value not in (None, "") and _is_secret(key):
        return HIDDEN
    return redact(value, secrets) if isinstance(value, str) else value
