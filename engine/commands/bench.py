"""Time a part of the engine and print the figures as JSON."""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Callable, Sequence
from typing import Any

from engine.commands.flags import Parser, nearest
from engine.errors import ConfigError

#: Name of a bench, which is a module of engine.bench with a function `run`, and what it measures.
BENCHES = {
    "transformer": "Time one forward of the network against its bare matrix products and attention calls.",
    "memory": "Compare the peak memory of a short and a long video, each in a fresh process.",
    "plan": "Hold the memory that plans predict to that of processes, on random models of 1 to 2 GB.",
    "device": "Measure what this device does with the 14B model's shapes: backends, dtypes, a block, offloading.",
    "host": "Time what the host does between two windows: matching colours and encoding H.264, on one thread.",
    "load": "Time the loading of a checkpoint, cold and warm, against plain reading and the libraries' own loading.",
    "start": "Time a worker's start to ready against its bare imports and the reading of its weights.",
    "overhead": "What the engine itself costs a worker's job: checking, composing, planning and answering, in seconds.",
    "soak": "Let a worker do many jobs: what its memory grows by, and what it leaves on the disk.",
    "quant": "Compare quantised weights with the plain ones on a CPU: errors, lips, bytes.",
    "talk": "Measure whether the embedded model talks: lips, binding, lags, colours, seams, turbo, seconds.",
}


def bench(words: Sequence[str]) -> int:
    """Run the bench that `words` name; each of its settings is a flag. Raises ConfigError and RequestError."""
    name = words[0] if words else ""
    parser = Parser(
        prog="multitalk bench",
        usage=f"multitalk bench {name if name in BENCHES else '|'.join(BENCHES)} [flags]",
        description=BENCHES.get(name) or "\n".join(f"{bench}: {about}" for bench, about in BENCHES.items()),
    )
    if name not in BENCHES:
        if name.startswith("-"):
            parser.read(words)
        hint = nearest(name, tuple(BENCHES), parser.prog) if name else f"multitalk bench {' or '.join(BENCHES)}"
        raise ConfigError(f"no bench named {name!r}" if name else "no bench named", field="command line", hint=hint)
    # Needs torch: a bench is not among the commands that start at once.
    run: Callable[..., dict[str, Any]] = importlib.import_module(f"engine.bench.{name}").run

    settings = {setting.name: setting.default for setting in inspect.signature(run).parameters.values()}
    for setting, default in settings.items():
        flag = "--" + setting.replace("_", "-")
        if default == ():
            parser.flag(flag, dest=setting, action="append", metavar="TEXT", help="may be given several times")
            continue
        if default is False:
            parser.flag(flag, dest=setting, action="store_true", help="off unless given")
            continue
        parser.flag(
            flag,
            dest=setting,
            type=_kind(default),
            default=default,
            metavar=_word(default),
            help=f"{_text(default) or 'none'} unless given",
        )
    values, rest = parser.read(words)
    parser.one(rest, "the name of a bench")
    given = {name: tuple(value or ()) if settings[name] == () else value for name, value in vars(values).items()}
    print(json.dumps(run(**given)))
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


def _word(default: Any) -> str:
    if isinstance(default, str):
        return "NAME"
    return "TxHxW" if isinstance(default, tuple) else "N"
