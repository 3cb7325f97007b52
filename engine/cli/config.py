"""`multitalk config`: the composed config with where each value comes from, or what one key means."""

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

#: Column at which comments begin, unless the line is longer.
_COMMENT = 50


def config(words: Sequence[str]) -> int:
    """Print the config that `words` compose, or what is known of the keys among them. Raises ConfigError."""
    from engine.cli.parser import Parser

    parser = Parser(
        prog="multitalk config",
        usage="multitalk config [KEY ...] [--json] group=name key=value ...",
        description="Print the composed config as YAML, with where each value comes from; of a KEY, what it means.\n"
        "With entrypoint=runpod it is that of a worker, with MULTITALK_OVERRIDES and MULTITALK_RECIPE.",
    )
    parser.flag("--json", action="store_true", help="print one JSON object")
    values, rest = parser.read(words)
    overrides = [word for word in rest if "=" in word or word.startswith("~")]
    wanted = [word for word in rest if word not in overrides]
    composed = trace(_booted(overrides))
    if wanted:
        return _print_keys(wanted, composed, as_json=values.json)
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


def _booted(asked: Sequence[str]) -> list[tuple[str, Origin]]:
    """Return what an engine is booted with that is asked for with `asked`, each word with where it comes from."""
    from engine.serving.worker.defaults import environment_overrides, environment_recipe

    mine = [(word, Origin("command line")) for word in asked]
    named = [word.partition("=")[2] for word in asked if word.startswith("entrypoint=")]
    if not named or named[-1] not in installed().entrypoints.names():
        return mine
    kind = installed().entrypoints.config(named[-1])
    if not issubclass(kind, EntrypointConfig):
        return mine
    booted = kind.boot(asked)
    # What an entrypoint adds comes first, so that what is asked for wins.
    added = booted[: len(booted) - len(asked)]
    if booted[len(added) :] != list(asked):
        return [(word, Origin("command line" if word in asked else "entrypoint", named[-1])) for word in booted]
    environment, recipe = environment_overrides(), environment_recipe()
    found = []
    for word in added:
        origin = Origin("entrypoint", named[-1])
        if word in environment:
            origin = Origin("MULTITALK_OVERRIDES")
        elif recipe and word == f"recipe={recipe}":
            origin = Origin("MULTITALK_RECIPE")
        found.append((word, origin))
    return [*found, *mine]


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
        # JSON is YAML: on one line, with escapes for what a terminal must not get.
        return plain(json.dumps(value, ensure_ascii=False))
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10**9, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...").rstrip()


def _odd(value: Any) -> bool:
    """Say whether YAML would take several lines for a value, or pass on control characters."""
    if isinstance(value, Mapping):
        return any(_odd(part) for part in value.values())
    if isinstance(value, list):
        return any(_odd(part) for part in value)
    return isinstance(value, str) and ("\n" in value or plain(value) != value)


def _found(name: str, composed: Composed) -> list[Key]:
    key = key_of(name, composed.tree())
    found = [key] if key is not None else [known for known in keys() if known.name == name]
    if not found:
        from engine.cli.parser import nearest

        known = sorted({known.name for known in keys()})
        raise ConfigError(
            f"there is no {name!r} in the config", field=name, hint=nearest(name, known, "multitalk config")
        )
    return found


def _print_keys(names: Sequence[str], composed: Composed, *, as_json: bool) -> int:
    told = [_about(name, key, composed) for name in names for key in _found(name, composed)]
    if as_json:
        print(json.dumps(told))
        return 0
    for facts in told:
        print(facts.pop("key"))
        if "value" in facts:
            facts["value"] = _scalar(facts["value"])
        for name, value in facts.items():
            if value:
                print(f"  {name + ':':<9} {plain(str(value)).replace('`', '')}")
    return 0


def _about(name: str, key: Key, composed: Composed) -> dict[str, Any]:
    told: dict[str, Any] = {
        "key": name,
        "choice": key.choice,
        "meaning": key.meaning,
        "type": key.type,
        "allowed": key.allowed,
        "default": key.default_text,
    }
    if name in composed.values:
        told |= {"value": composed.values[name], "from": str(composed.origins[name])}
    return told
