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
from engine.text.terminal import cells, columns, hanging, styled, wrapped

#: Column of the comments, unless a line is longer.
_COMMENT = 50


def config(arguments: Sequence[str]) -> int:
    """Print the config composed from the overrides in `arguments`, or the keys among them. Raises ConfigError."""
    from engine.cli.parser import Parser

    if arguments[:1] == ["init"]:
        return _init(arguments[1:])

    parser = Parser(
        prog="multitalk config",
        usage="multitalk config [KEY ...] [--json] group=name key=value ...\n       multitalk config init",
        description="Print the composed config as YAML, with where each value comes from; of a KEY, what it means.\n"
        "With entrypoint=NAME it is that of another command than generate, such as batch or runpod (a worker).\n"
        "`init` writes a first file of settings of your own, with comments, and prints its path.",
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


def _init(arguments: Sequence[str]) -> int:
    from engine.cli.parser import Parser
    from engine.cli.settings import init

    parser = Parser(
        prog="multitalk config init",
        usage="multitalk config init",
        description="Write ~/.config/multitalk/config.yaml with comments, and print its path.",
    )
    _, rest = parser.read(arguments)
    parser.none(rest)
    print(init())
    return 0


def _with_origins(arguments: Sequence[str]) -> list[tuple[str, Origin]]:
    """Return the overrides of an engine that is started with `arguments`, each with its origin."""
    from engine.cli.settings import settings_for
    from engine.serving.worker.defaults import environment_overrides, environment_recipe

    named = [override.partition("=")[2] for override in arguments if override.startswith("entrypoint=")]
    settings = settings_for(named[-1] if named else "generate", arguments)
    typed = [(override, Origin("command line")) for override in arguments]
    own = [*((entry.override, Origin(entry.origin)) for entry in settings.entries), *typed]
    arguments = [*settings.overrides, *arguments]
    if not named or named[-1] not in installed().entrypoints.names():
        return own
    kind = installed().entrypoints.config(named[-1])
    if not issubclass(kind, EntrypointConfig):
        return own
    booted = kind.boot(arguments)
    # The entrypoint's own overrides come first, so that the arguments win.
    added = booted[: len(booted) - len(arguments)]
    if booted[len(added) :] != list(arguments):
        origins = dict(own)
        return [(override, origins.get(override, Origin("entrypoint", named[-1]))) for override in booted]
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
        yield from _line(f"# {group}={name}", plain(str(by)))
    above: list[str] = []
    for key, value in composed.values.items():
        *parents, last = split(key)
        for depth, parent in enumerate(parents):
            if above[: depth + 1] != parents[: depth + 1]:
                yield f"{'  ' * depth}{_scalar(parent)}:"
                above = parents[: depth + 1]
        above = parents
        line = f"{'  ' * len(parents)}{_scalar(last)}: {_scalar(value)}"
        yield from _line(line, plain(str(composed.origins[key])))


def _line(line: str, origin: str) -> Iterator[str]:
    """Yield a line with its origin as a comment; on a terminal without room for both, the comment stands above it."""
    limit = columns()
    room = _COMMENT if limit is None else min(_COMMENT, limit // 2)
    if limit is None or max(cells(line), room) + 4 + cells(origin) <= limit:
        yield f"{line:<{room}}  {styled(f'# {origin}', 'dim')}"
        return
    indent = line[: len(line) - len(line.lstrip(" "))]
    for text in wrapped(origin, max(20, limit - len(indent) - 2)):
        yield styled(f"{indent}# {text}", "dim")
    yield line


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
        print(styled(report.pop("key"), "bold"))
        if "value" in report:
            report["value"] = _scalar(report["value"])
        for name, value in report.items():
            if value:
                text = plain(str(value)).replace("`", "")
                print("\n".join(hanging(f"  {name + ':':<9} ", text, columns(), style="cyan")))
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
