"""`multitalk config`: prints the composed config with the origin of each value, or the meaning of single keys."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from engine.config import EntrypointConfig
from engine.config_keys.origins import Composed, Origin, key_of, split, trace
from engine.config_keys.reference import Key, keys
from engine.errors import ConfigError, plain
from engine.plugin.manager import installed

#: Column of the comments, unless a line is longer.
_COMMENT = 50


def config(arguments: Sequence[str]) -> int:
    """Print the config composed from the overrides in `arguments`, or the keys among them. Raises ConfigError."""
    from engine.cli.parser import Parser

    parser = Parser(
        prog="multitalk config",
        usage="multitalk config [KEY ...] [--json] group=name key=value ...",
        description="Print the composed config as YAML, with where each value comes from; of a KEY, what it means.\n"
        "With entrypoint=runpod it is that of a worker, with MULTITALK_OVERRIDES and MULTITALK_RECIPE.",
    )
    parser.flag("--json", action="store_true", help="print one JSON object")
    values, rest = parser.read(arguments)
    overrides = [argument for argument in rest if "=" in argument or argument.startswith("~")]
    key_names = [argument for argument in rest if argument not in overrides]
    composed = trace(_with_origins(overrides))
    if key_names:
        return _print_keys(key_names, composed, as_json=values.json)
    if values.json:
        answer = {
            "choices": {group: {"choice": name, **by.as_json()} for group, (name, by) in composed.choices.items()},
            "config": composed.tree(),
            "origins": {key: origin.as_json() for key, origin in composed.origins.items()},
        }
        print(json.dumps(answer))
        return 0
    print("\n".join(_yaml(composed)))
    return 0


def _with_origins(arguments: Sequence[str]) -> list[tuple[str, Origin]]:
    """Return the overrides of an engine that is started with `arguments`, each with its origin."""
    from engine.serving.worker.defaults import environment_overrides, environment_recipe

    own = [(override, Origin("command line")) for override in arguments]
    named = [override.partition("=")[2] for override in arguments if override.startswith("entrypoint=")]
    if not named or named[-1] not in installed().entrypoints.names():
        return own
    kind = installed().entrypoints.config(named[-1])
    if not issubclass(kind, EntrypointConfig):
        return own
    booted = kind.boot(arguments)
    # The entrypoint's own overrides come first, so that the arguments win.
    added = booted[: len(booted) - len(arguments)]
    if booted[len(added) :] != list(arguments):
        return [
            (override, Origin("command line" if override in arguments else "entrypoint", named[-1]))
            for override in booted
        ]
    environment, recipe = environment_overrides(), environment_recipe()
    result = []
    for override in added:
        origin = Origin("entrypoint", named[-1])
        if override in environment:
            origin = Origin("MULTITALK_OVERRIDES")
        elif recipe and override == f"recipe={recipe}":
            origin = Origin("MULTITALK_RECIPE")
        result.append((override, origin))
    return [*result, *own]


def _yaml(composed: Composed) -> Iterator[str]:
    for group, (name, by) in composed.choices.items():
        yield f"# {group}={name}".ljust(_COMMENT) + f"  # {by}"
    above: list[str] = []
    for key, value in composed.values.items():
        *parents, last = split(key)
        for depth, parent in enumerate(parents):
            if above[: depth + 1] != parents[: depth + 1]:
                yield f"{'  ' * depth}{_scalar(parent)}:"
                above = parents[: depth + 1]
        above = parents
        line = f"{'  ' * len(parents)}{_scalar(last)}: {_scalar(value)}"
        yield f"{line:<{_COMMENT}}  # {plain(str(composed.origins[key]))}"


def _scalar(value: Any) -> str:
    if _odd(value):
        # JSON is valid YAML: one line, with control characters escaped.
        return plain(json.dumps(value, ensure_ascii=False))
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10**9, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...").rstrip()


def _odd(value: Any) -> bool:
    """Return whether YAML would print a value over several lines, or with control characters."""
    if isinstance(value, Mapping):
        return any(_odd(part) for part in value.values())
    if isinstance(value, list):
        return any(_odd(part) for part in value)
    return isinstance(value, str) and ("\n" in value or plain(value) != value)


def _find_keys(name: str, composed: Composed) -> list[Key]:
    entry = key_of(name, composed.tree())
    matches = [entry] if entry is not None else [entry for entry in keys() if entry.name == name]
    if not matches:
        from engine.cli.parser import nearest

        names = sorted({entry.name for entry in keys()})
        hint = nearest(name, names, "multitalk config")
        raise ConfigError(f"there is no key {name!r} in the config", field=name, hint=hint)
    return matches


def _print_keys(names: Sequence[str], composed: Composed, *, as_json: bool) -> int:
    reports = [_about(name, key, composed) for name in names for key in _find_keys(name, composed)]
    if as_json:
        print(json.dumps(reports))
        return 0
    for report in reports:
        print(report.pop("key"))
        if "value" in report:
            report["value"] = _scalar(report["value"])
        for name, value in report.items():
            if value:
                print(f"  {name + ':':<9} {plain(str(value)).replace('`', '')}")
    return 0


def _about(name: str, key: Key, composed: Composed) -> dict[str, Any]:
    report: dict[str, Any] = {
        "key": name,
        "choice": key.choice,
        "meaning": key.meaning,
        "type": key.type,
        "allowed": key.allowed,
        "default": key.default_text,
    }
    if name in composed.values:
        report |= {"value": composed.values[name], "from": str(composed.origins[name])}
    return report
