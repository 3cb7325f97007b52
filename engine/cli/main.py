"""`multitalk COMMAND ...`: parses the arguments, runs the command and prints errors as one line."""

from __future__ import annotations

import errno
import io
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path

from engine.errors import Cancelled, ConfigError, EngineError, plain
from engine.imports.collection import uncollected
from engine.runtime.quiet import silence_libraries
from engine.text.terminal import columns, hanging, tell


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return the exit status.

    0: done; 2: an error that the user can fix, printed in one line or a few; 130: interrupted. Any other error is a
    bug and keeps its traceback.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A path may not be valid text in the terminal's encoding; its bytes are printed unchanged.
        sys.stdout.reconfigure(errors="surrogateescape")
    try:
        with warnings.catch_warnings(), _own_environment():
            silence_libraries()
            status = _dispatch(arguments)
            if sys.stdout is not None:  # None: the caller closed it
                sys.stdout.flush()
            return status
    except Cancelled as error:
        tell("", str(error))
        return 130
    except EngineError as error:
        if not _is_follower():
            first, *more = map(plain, error.lines())
            tell("error", first)
            for line in more:
                print(
                    "\n".join(hanging(" " * 13 if line[:3] == "   " else line[:13], line[13:], columns(sys.stderr))),
                    file=sys.stderr,
                )
        return 2
    except KeyboardInterrupt as error:
        tell("", str(error) if error.args else "cancelled")
        return 130
    except BrokenPipeError:
        # The reader (head, less) has closed the pipe; nothing more must be flushed into it at exit.
        _forget_stdout()
        return 141
    except OSError as error:
        # The stages report files that they cannot write; here the disk of stdout or TMPDIR is full.
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _forget_stdout()
        where = f" for {error.filename}" if error.filename else ""
        tell("error", f"disk: {error.strerror}{where}; free space where TMPDIR and the output are")
        return 2
    except SystemExit as end:
        # argparse raises it after --help.
        return end.code if isinstance(end.code, int) else 0


@contextmanager
def _own_environment() -> Iterator[None]:
    """Undo what flags such as --config tell the processes that a command starts."""
    names = ("MULTITALK_CONFIG", "MULTITALK_LOG_FORMAT", "MULTITALK_RECIPES")
    before = {name: os.environ.get(name) for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _is_follower() -> bool:
    """Return whether torchrun started this process as a rank other than 0, which does not print errors.

    Every rank finds the same errors in the command line, and rank 0 prints them. Errors of a single process are
    reported by engine.runtime.parallel.
    """
    return "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("RANK", "0") != "0"


def _forget_stdout() -> None:
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _dispatch(arguments: list[str]) -> int:
    name, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if name in ("-h", "--help", "help"):
        from engine.cli.help import manual

        if rest and name == "help" and not rest[0].startswith("-"):
            return _dispatch([rest[0], "--help"])
        print(manual())
        return 0
    if name in ("-V", "--version"):
        print(f"multitalk-engine {version('multitalk-engine')}")
        return 0
    if name in _COMMANDS:
        return _COMMANDS[name](rest)
    from engine.plugin.manager import installed

    entrypoints = installed().entrypoints.names()
    if name in entrypoints:
        return _entrypoint(name, rest)
    if "=" in name and not name.startswith("-"):
        chosen = [word.partition("=")[2] for word in arguments if word.startswith("entrypoint=")]
        return _entrypoint(
            chosen[-1] if chosen else "generate", [w for w in arguments if not w.startswith("entrypoint=")]
        )
    return _without_command(arguments, ["--help", "--version", *_COMMANDS, *entrypoints])


def _without_command(arguments: list[str], known: list[str]) -> int:
    """Make a video where the first argument is a file or a flag of generate. Raises ConfigError for any other."""
    from engine.cli.inputs import is_file_word
    from engine.cli.parser import entrypoint_parser
    from engine.cli.suggest import command_hint, flag_hint
    from engine.plugin.manager import installed

    name = arguments[0]
    if not name.startswith("-"):
        if is_file_word(name) and ("://" in name or Path(name).expanduser().is_file()):
            return _entrypoint("generate", arguments)
        raise ConfigError(f"unknown command {name!r}", field="command line", hint=command_hint(name, known))
    parser = entrypoint_parser("generate", installed().entrypoints.config("generate"), "")
    parser.add_common()
    flag, _, value = name.partition("=")
    if flag in parser.known_flags:
        return _entrypoint("generate", arguments)
    follows = arguments[1] if len(arguments) > 1 and not arguments[1].startswith("-") else ""
    hint = flag_hint(flag, value or follows, {*parser.known_flags, *known}, "multitalk")
    raise ConfigError(f"unknown flag {flag!r}", field="command line", hint=hint)


def _entrypoint(name: str, arguments: Sequence[str], *extra: str, prog: str = "", about: str = "") -> int:
    with uncollected():
        from engine.cli.parser import entrypoint_parser, read_entrypoint
        from engine.plugin.manager import installed

        config = installed().entrypoints.config(name)
        parser = entrypoint_parser(prog or name, config, about or config.__doc__ or "")
        parsed = read_entrypoint(name, parser, arguments)
        from engine.cli.settings import settings_for

        settings = settings_for(name, parsed.overrides)

    first, *given = [*parsed.overrides, *extra]
    settings.show(given)
    overrides = [first, *settings.overrides, *given]
    try:
        return _launch(config, overrides, multirun=parsed.multirun)
    except EngineError as error:
        raise settings.located(error, given) from error.__cause__


def _launch(config: type, overrides: list[str], *, multirun: bool) -> int:
    from engine.config import EntrypointConfig

    if issubclass(config, EntrypointConfig):
        overrides = config.boot(overrides)
    if multirun:
        from engine.sweeps.sweep import sweep

        return sweep(overrides)
    with uncollected():
        from engine.cli.run import launch

    return launch(overrides)


def _plan(arguments: Sequence[str]) -> int:
    about = "Shows what generate would do with the same arguments: loads and makes nothing."
    return _entrypoint("generate", arguments, "entrypoint.dry_run=true", prog="plan", about=about)


def _plugins(arguments: Sequence[str]) -> int:
    if arguments[:1] == ["new"]:
        from engine.cli.new_plugin import new_plugin

        return new_plugin(arguments[1:])
    from engine.cli.catalog import print_catalog
    from engine.cli.parser import Parser
    from engine.cli.settings import settings_for

    parser = Parser(
        prog="multitalk plugins",
        usage="multitalk plugins [--json]\n       multitalk plugins new NAME [--kind KIND] [--folder DIR]",
        description="List every component and preset by group; `new` writes a package with a component that works.",
    )
    parser.flag("--json", action="store_true", help="print one JSON object")
    values, rest = parser.read(arguments)
    parser.none(rest)
    # For recipes of a person's own.
    settings_for("generate")
    return print_catalog(as_json=values.json)


def _config(arguments: Sequence[str]) -> int:
    from engine.cli.config import config

    return config(arguments)


def _show(arguments: Sequence[str]) -> int:
    from engine.cli.parser import Parser
    from engine.cli.provenance import show

    parser = Parser(
        prog="multitalk show", usage="multitalk show FILE.mp4 [--json]", description="Print the provenance of a video."
    )
    parser.flag("--json", action="store_true", help="print one JSON object")
    values, rest = parser.read(arguments)
    return show(Path(parser.one(rest, "FILE.mp4")), as_json=values.json)


def _again(arguments: Sequence[str]) -> int:
    from engine.cli.provenance import again

    return again(arguments)


def _retake(arguments: Sequence[str]) -> int:
    from engine.cli.retake import retake

    return retake(arguments)


def _compare(arguments: Sequence[str]) -> int:
    from engine.cli.compare import compare
    from engine.cli.parser import Parser

    parser = Parser(
        prog="multitalk compare",
        usage="multitalk compare DIR",
        description="Write one page with the videos of a sweep's runs side by side, and a table of their figures.",
    )
    _, rest = parser.read(arguments)
    return compare(Path(parser.one(rest, "DIR")))


def _bench(arguments: Sequence[str]) -> int:
    # A measurement must not depend on whose machine it is.
    for name in ("MULTITALK_OVERRIDES", "MULTITALK_RECIPE"):
        if os.environ.pop(name, ""):
            tell("warning", f"bench does not use {name}")
    os.environ["MULTITALK_CONFIG"] = ""
    from engine.cli.bench import bench

    return bench(arguments)


def _doctor(arguments: Sequence[str]) -> int:
    from engine.cli.doctor import doctor

    return doctor(arguments)


def _rehearse(arguments: Sequence[str]) -> int:
    from engine.cli.rehearse import rehearse

    return rehearse(arguments)


def _completion(arguments: Sequence[str]) -> int:
    from engine.cli.completion import completion

    return completion(arguments, run_quietly)


def run_quietly(arguments: list[str]) -> None:
    """Run a command whose parser is only looked at (`BaseParser.observer`)."""
    with suppress(SystemExit, EngineError), _own_environment():
        _dispatch(arguments)


def _examples(arguments: Sequence[str]) -> int:
    from engine.cli.examples import examples

    return examples(arguments)


def _models(arguments: Sequence[str]) -> int:
    # Imported here only, because the hub's library is slow to import.
    from engine.cli.models import run

    return run(arguments, "multitalk models")


_COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "plan": _plan,
    "plugins": _plugins,
    "config": _config,
    "show": _show,
    "again": _again,
    "retake": _retake,
    "compare": _compare,
    "completion": _completion,
    "doctor": _doctor,
    "rehearse": _rehearse,
    "bench": _bench,
    "models": _models,
    "examples": _examples,
}
