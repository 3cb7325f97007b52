"""`multitalk bench`: measures a part of the engine and prints the figures as JSON."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.cli.parser import Parser, nearest
from engine.errors import ConfigError


@dataclass(frozen=True)
class Bench:
    """A benchmark: what it measures, in one sentence, and a loader of its function, which is imported only on use."""

    about: str
    load: Callable[[], Callable[..., dict[str, Any] | None]]


def _transformer() -> Callable[..., dict[str, Any]]:
    from engine.bench import transformer

    return transformer.run


def _memory() -> Callable[..., dict[str, Any]]:
    from engine.bench import memory

    return memory.run


def _plan() -> Callable[..., dict[str, Any]]:
    from engine.bench import plan

    return plan.run


def _device() -> Callable[..., dict[str, Any]]:
    from engine.bench import device

    return device.run


def _host() -> Callable[..., dict[str, Any]]:
    from engine.bench import host

    return host.run


def _load() -> Callable[..., dict[str, Any]]:
    from engine.bench import load

    return load.run


def _start() -> Callable[..., dict[str, Any]]:
    from engine.bench import start

    return start.run


def _generate() -> Callable[..., dict[str, Any]]:
    from engine.bench import generate

    return generate.run


def _overhead() -> Callable[..., dict[str, Any]]:
    from engine.bench import overhead

    return overhead.run


def _live() -> Callable[..., dict[str, Any]]:
    from engine.bench import live

    return live.run


def _soak() -> Callable[..., dict[str, Any]]:
    from engine.bench import soak

    return soak.run


BENCHES = {
    "transformer": Bench("Time a forward of the network against its bare matrix products and attention.", _transformer),
    "memory": Bench("Compare the peak memory of a short and a long video, each in a fresh process.", _memory),
    "plan": Bench("Hold the memory that plans predict to that of processes, on random models of 1 to 2 GB.", _plan),
    "device": Bench("Measure what this device does with the 14B model's shapes: kernels, dtypes, offloading.", _device),
    "host": Bench("Time what the host does between two windows: matching colours, encoding H.264.", _host),
    "load": Bench("Time the loading of a checkpoint, cold and warm, against plain reading and libraries.", _load),
    "start": Bench("Time a worker's start to ready against its imports and the reading of its weights.", _start),
    "generate": Bench("Time whole videos in new processes, by stage; --against: beside another version.", _generate),
    "overhead": Bench("Measure what the engine itself costs a worker's job, in seconds.", _overhead),
    "live": Bench("Time when the first seconds of a video are out while it is made, for several settings.", _live),
    "soak": Bench("Let a worker do many jobs: what its memory grows by, and what it leaves on the disk.", _soak),
}


def bench(arguments: Sequence[str]) -> int:
    """Run the bench named by the first argument; its settings are flags. Raises ConfigError and RequestError."""
    return run_bench(arguments, BENCHES, "multitalk bench")


def run_bench(arguments: Sequence[str], benches: Mapping[str, Bench], prog: str) -> int:
    """Run the bench of `benches` named by the first argument and print its report as JSON. Raises EngineError."""
    name = arguments[0] if arguments else ""
    parser = Parser(
        prog=prog,
        usage=f"{prog} {name if name in benches else 'NAME'} [flags]",
        description=benches[name].about
        if name in benches
        else "\n".join(f"{name}: {bench.about}" for name, bench in benches.items()),
    )
    if name not in benches:
        if name.startswith("-"):
            parser.read(arguments)
        hint = nearest(name, tuple(benches), parser.prog) if name else f"{prog} NAME: {', '.join(benches)}"
        raise ConfigError(f"no bench named {name!r}" if name else "no bench named", field="command line", hint=hint)
    run = benches[name].load()

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
    values, rest = parser.read(arguments)
    parser.one(rest, "the name of a bench")
    options = {name: tuple(value or ()) if settings[name] == () else value for name, value in vars(values).items()}
    report = run(**options)
    if report is not None:
        print(json.dumps(report))
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
