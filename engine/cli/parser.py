"""Parses command-line arguments into overrides of the config."""

from __future__ import annotations

import argparse
import dataclasses
import json
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from engine.assembly.escape import override, override_list
from engine.cli.base import BaseParser
from engine.cli.common import COMMON, apply
from engine.cli.formatting import HelpFormatter, fit_help
from engine.cli.inputs import is_file_word, split_files
from engine.cli.suggest import flag_hint
from engine.config import ComponentConfig, RequestConfig
from engine.errors import ConfigError
from engine.serving.jobs.timeline import timeline_text
from engine.text.similar import similar


@dataclass(frozen=True)
class Flag:
    """A flag that sets `request.<key>`."""

    key: str
    metavar: str
    help: str
    many: bool = False
    #: Whether it takes two values, of which the first is a time.
    timed: bool = False

    @property
    def name(self) -> str:
        """The flag as it is typed."""
        return "--" + self.key.replace("_", "-")

    @property
    def names(self) -> str:
        """The short flag, if it has one, and the flag."""
        return f"{SHORT[self.key]} {self.name}" if self.key in SHORT else self.name


#: Short names of flags, by the key or field that they set.
SHORT = {
    "image": "-i",
    "audio": "-a",
    "prompt": "-p",
    "negative_prompt": "-n",
    "frames": "-f",
    "seed": "-s",
    "output": "-o",
    "quiet": "-q",
}


#: One flag for each field of RequestConfig whose metadata has a "word", in the order of the fields.
REQUEST = tuple(
    Flag(field.name, field.metadata["word"], field.metadata["help"], many=field.name == "audio")
    for field in dataclasses.fields(RequestConfig)
    if "word" in field.metadata
)
#: Flags that are repeated, once for each entry of the field `request.<key>s`.
TIMED = (
    Flag(
        "prompt_at",
        "TIME TEXT",
        "prompt from a time on: seconds such as 3.2, or a frame such as 80f; repeat it",
        True,
        True,
    ),
    Flag(
        "image_at",
        "TIME FILE",
        "reference picture from a time on; repeat it (continuation.style=infinitetalk)",
        True,
        True,
    ),
)


@dataclass(frozen=True)
class ParsedArguments:
    """A parsed command line: overrides in Hydra's grammar, and whether they are a sweep."""

    overrides: list[str]
    multirun: bool = False


class Parser(BaseParser):
    """argparse with errors as one line that suggests the nearest known flag."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(formatter_class=HelpFormatter, allow_abbrev=False, add_help=False, **arguments)
        self._flags_with_value: set[str] = set()
        self._timed_flags: set[str] = set()
        self._known_flags: set[str] = {"--help", "-h"}
        #: Config key that is set by an argument which is neither a flag nor an override; "": none.
        self.bare = ""
        #: Whether files may stand without a flag.
        self.takes_files = False
        self.add_argument("-h", "--help", action="help", help="show this help")

    def flag(self, name: str, group: Any = None, *, timed: bool = False, **arguments: Any) -> None:
        """Add the flag `name` (or several names, separated by spaces); `timed`: with two values, as JSON text."""
        names = name.split()
        if timed:
            self._timed_flags.update(names)
        (group or self).add_argument(*names, **arguments)
        self._known_flags.update(names)
        if arguments.get("action") in (None, "append"):
            self._flags_with_value.update(names)

    @property
    def known_flags(self) -> frozenset[str]:
        """All flags, short and long."""
        return frozenset(self._known_flags)

    def takes_value(self, name: str) -> bool:
        """Return whether the flag `name` is followed by a value."""
        return name in self._flags_with_value or name in self._timed_flags

    def format_help(self) -> str:
        """Return the help at the terminal's width."""
        self.add_common()
        return fit_help(super().format_help())

    def add_common(self) -> None:
        """Add the flags of all commands that the command does not have itself."""
        group = None
        for names, arguments in COMMON:
            if self._known_flags.isdisjoint(names.split()):
                group = group or self.add_argument_group("all commands")
                self.flag(names, group, **arguments)

    def read(self, argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
        """Return the flags, and all other arguments in order. Raises ConfigError for an unknown flag."""
        self.add_common()
        values, rest = self.parse_known_args(self._join_values(argv))
        end = rest.index("--") if "--" in rest else len(rest)
        for index, argument in enumerate(rest[:end]):
            if argument.startswith("-"):
                name, _, value = argument.partition("=")
                follows = rest[index + 1] if index + 1 < end else ""
                value = value or ("" if follows.startswith("-") or "=" in follows else follows)
                raise ConfigError(
                    f"unknown flag {name}",
                    field="command line",
                    hint=flag_hint(name, value, self._known_flags, self.prog),
                )
        apply(values)
        return values, [argument for argument in rest if argument != "--"]

    def one(self, rest: Sequence[str], what: str) -> str:
        """Return the only argument in `rest`. Raises ConfigError if `what` is missing or there are more arguments."""
        if not rest:
            raise ConfigError(f"{what} is missing", field="command line", hint=f"see {self.prog} --help")
        self.none(rest[1:])
        return rest[0]

    def none(self, rest: Sequence[str]) -> None:
        """Raise ConfigError if `rest` has arguments."""
        if rest:
            raise ConfigError(f"unexpected {rest[0]!r}", field="command line", hint=f"see {self.prog} --help")

    def _join_values(self, argv: Sequence[str]) -> list[str]:
        # In "--prompt -5" and "--prompt -x" the second argument is a value, unless it is a known flag.
        glued: list[str] = []
        arguments = iter(argv)
        for argument in arguments:
            if argument == "--":
                return [*glued, argument, *arguments]
            if (timed := argument.partition("=")[0]) in self._timed_flags:
                values = [*argument.split("=", 1)[1:], *islice(arguments, 1 if "=" in argument else 2)]
                if len(values) < 2 or any(value.partition("=")[0] in self._known_flags for value in values):
                    what = f"{timed} needs a time and a value"
                    raise ConfigError(what, field="command line", hint=f'such as {timed} 3.2 "a happy woman"')
                glued.append(f"{timed}={json.dumps(values)}")
            elif argument not in self._flags_with_value or (value := next(arguments, None)) is None:
                glued.append(argument)
            elif value.partition("=")[0] in self._known_flags:
                raise ConfigError(f"{argument} needs a value", field="command line", hint=f"see {self.prog} --help")
            else:
                glued.append(f"{argument}={value}")
        return glued


def nearest(name: str, known: Sequence[str] | set[str], command: str) -> str:
    """Return a hint with the known name that is most similar to `name`, or else the command for help."""
    near = similar(name, sorted(known))
    return f"did you mean {near[0]}?" if near else f"see {command} --help"


def entrypoint_parser(name: str, config: type[ComponentConfig], description: str) -> Parser:
    """Return the parser of a sub-command: its own flags, and those of the request if the entrypoint takes one."""
    bare = "".join(f" {field.metadata['word']}" for field in dataclasses.fields(config) if field.metadata.get("bare"))
    parser = Parser(
        prog=f"multitalk {name}",
        usage=f"multitalk {name}{bare} [flags] group=name key=value ...",
        description=description,
        epilog="All other arguments are overrides of the config: group=name selects, key=value sets a value;\n"
        "with -m, commas make a sweep. 'multitalk --help' lists the groups.",
    )
    if "request" in typing.get_type_hints(config):
        parser.usage = f"multitalk {name} [PICTURE|VIDEO VOICE ...] [flags] group=name key=value ..."
        parser.takes_files = True
        add_request_flags(parser, (*REQUEST, *TIMED))
    add_own_flags(parser, config)
    parser.flag("-m --multirun", action="store_true", help="run every combination of comma-separated values")
    return parser


def add_request_flags(parser: Parser, flags: Sequence[Flag]) -> None:
    """Add the `flags` of the request, and --output, to `parser`."""
    group = parser.add_argument_group("the request")
    for flag in flags:
        action = {"action": "append"} if flag.many else {}
        parser.flag(flag.names, group, timed=flag.timed, dest=flag.key, metavar=flag.metavar, help=flag.help, **action)
    parser.flag(
        "-o --output", group, metavar="FILE", help="folder and name of the video (folders: only with sink=disk)"
    )


def add_own_flags(parser: Parser, config: type[ComponentConfig]) -> None:
    """Add a flag to `parser` for each field of an entrypoint's config; `help` and `metavar` come from its metadata.

    A field with `bare` in its metadata also takes an argument without a flag; a field with `flag` False has no flag.
    """
    group = parser.add_argument_group("this command")
    hints = typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        if field.name in ("name", "request") or not field.metadata.get("flag", True):
            continue
        name, dest = "--" + field.name.replace("_", "-"), f"entrypoint.{field.name}"
        if field.name in SHORT:
            name = f"{SHORT[field.name]} {name}"
        text = field.metadata.get("help", dest)
        if field.metadata.get("bare"):
            parser.bare = dest
        if hints[field.name] is bool:
            parser.flag(name, group, dest=dest, action="store_true", help=text)
        else:
            parser.flag(name, group, dest=dest, metavar=field.metadata.get("word", "VALUE"), help=text)


def read_entrypoint(name: str, parser: Parser, argv: Sequence[str]) -> ParsedArguments:
    """Return the overrides for the arguments of a sub-command. Raises ConfigError."""
    values, rest = parser.read(argv)
    return read_arguments(name, parser, values, rest)


def read_arguments(name: str, parser: Parser, values: argparse.Namespace, rest: Sequence[str]) -> ParsedArguments:
    """Return the overrides for the flags and other arguments of the sub-command `name`. Raises ConfigError."""
    options: dict[str, Any] = {key: value for key, value in vars(values).items() if value not in (None, False)}
    multirun = bool(options.pop("multirun", False))
    if parser.takes_files:
        rest = split_files(rest, options, parser.prog)
    output = options.pop("output", None)
    overrides = [f"entrypoint={name}", *_timelines(options)]
    for flag in REQUEST:
        value = options.pop(flag.key, None)
        if value is None:
            continue
        if flag.many:
            overrides.append(override_list(f"request.{flag.key}", value))
            continue
        if multirun and flag.key in ("frames", "fps", "seed") and "," in value:
            hint = f"to sweep, write request.{flag.key}={value}"
            raise ConfigError(f"{flag.name} takes one value", field=f"request.{flag.key}", hint=hint)
        # The only key that takes a number or a word: in quotes a number would be read as a word.
        number = flag.key == "frames" and value.isascii() and value.isdigit()
        overrides.append(f"request.{flag.key}={value}" if number else override(f"request.{flag.key}", value))
    for key, value in options.items():
        overrides.append(f"{key}=true" if value is True else override(key, value))
    if output is not None:
        overrides += _output(output, rest, multirun)
    if parser.bare and (bare := next((argument for argument in rest if is_file_word(argument)), "")):
        overrides.append(override(parser.bare, bare))
        rest = [argument for argument in rest if argument is not bare]
    return ParsedArguments([*overrides, *plain(rest, parser.prog)], multirun)


def _timelines(options: dict[str, Any]) -> list[str]:
    """Return the overrides for flags with times, and remove those flags and the flag for the value at 0."""
    overrides = []
    for flag in TIMED:
        entries = [tuple(json.loads(pair)) for pair in options.pop(flag.key, None) or []]
        single = flag.key.removesuffix("_at")
        if not entries:
            continue
        if f"{single}s" in options:
            what = f"{flag.name} and --{single}s are both given"
            raise ConfigError(what, field="command line", hint="give all entries in one of the two ways")
        if single in options:
            entries.insert(0, ("0", options.pop(single)))
        text = timeline_text(f"{single}s", entries)
        first = json.loads(text)[f"{single}s"][0]
        if first.get("from") or first.get("from_frame"):
            raise ConfigError(
                f"there is no {single} before {entries[0][0]}",
                field=flag.name,
                hint=f"give the first one with --{single} (it holds from 0), or begin with {flag.name} 0",
            )
        overrides.append(override(f"request.{single}s", text))
    return overrides


def plain(arguments: Sequence[str], command: str) -> list[str]:
    """Return `arguments` if all are overrides. Raises ConfigError."""
    for argument in arguments:
        if "=" not in argument and not argument.startswith("~"):
            raise ConfigError(
                f"{argument!r} is neither a flag nor group=name nor key=value",
                field="command line",
                hint=f"put texts with spaces in quotes; see {command} --help",
            )
    return list(arguments)


def _output(text: str, rest: Sequence[str], multirun: bool) -> list[str]:
    path = Path(text)
    if not path.name or text.endswith("/"):
        raise ConfigError(f"{text!r} names no file", field="--output", hint="such as --output films/talk.mp4")
    overrides = [override("request.filename", path.name)]
    sinks = [argument.partition("=")[2] for argument in rest if argument.startswith("sink=")]
    if not sinks or sinks[-1] == "disk":
        # Each run of a sweep has its own folder below this one.
        folder = "hydra.sweep.dir" if multirun else "sink.folder"
        overrides.append(override(folder, str(path.parent)))
    elif str(path.parent) != ".":
        raise ConfigError("only the disk sink has folders", field="--output", hint=f"give only {path.name}")
    return overrides
