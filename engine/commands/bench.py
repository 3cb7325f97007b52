"""Time a part of the engine and print the figures as JSON."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Sequence
from typing import Any

from engine.commands.flags import Parser, nearest
from engine.errors import ConfigError

BENCHES = ("transformer",)


def bench(words: Sequence[str]) -> int:
    """Run the bench that `words` name; each of its settings is a flag. Raises ConfigError and RequestError."""
    parser = Parser(
        prog="multitalk bench",
        usage="multitalk bench transformer [flags]",
        description="Time one forward of the network against its bare matrix products and attention calls.",
    )
    name = words[0] if words else ""
    if name not in BENCHES and not name.startswith("-"):
        hint = nearest(name, BENCHES, parser.prog) if name else "multitalk bench transformer"
        raise ConfigError(f"no bench named {name!r}" if name else "no bench named", field="command line", hint=hint)
    # Needs torch: a bench is not among the commands that start at once.
    from engine.bench import transformer

    for setting in inspect.signature(transformer.run).parameters.values():
        parser.flag(
            "--" + setting.name.replace("_", "-"),
            dest=setting.name,
            type=_kind(setting.default),
            default=setting.default,
            metavar=_text(setting.default),
        )
    values, rest = parser.read(words)
    parser.one(rest, "the name of a bench")
    print(json.dumps(transformer.run(**vars(values))))
    return 0


def _kind(default: Any) -> Callable[[str], Any]:
    if not isinstance(default, tuple):
        return type(default)

    def size(text: str) -> tuple[int, ...]:
        sides = tuple(int(side) for side in text.split("x"))
        if len(sides) != len(default) or min(sides) < 1:
            raise ValueError(text)
        return sides

    return size


def _text(default: Any) -> str:
    return "x".join(map(str, default)) if isinstance(default, tuple) else str(default)
