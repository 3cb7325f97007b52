"""`python -m engine.cli.commands_page > docs/commands.md`: the page of all commands and flags, from their parsers."""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Iterator

from engine.cli.catalog import OURS, choices
from engine.cli.help import COMMANDS
from engine.cli.main import main
from engine.errors import EngineError

_INTRO = """\
# Commands and flags

`python -m engine.cli.commands_page > docs/commands.md` generates this page from the parsers; a test compares them. It
is what `multitalk COMMAND --help` prints. [cli.md](cli.md) explains the commands, [config.md](config.md) all keys that
can follow them as `key=value`.
"""
#: How the help of a command names its own commands.
_NESTED = {"models": r"^  (\w+) +\S", "bench": r"^([a-z]+): (?=[A-Z])", "plugins": r"multitalk plugins (\w+) NAME"}
#: Columns of the help, in which no line wraps on the site.
_COLUMNS = "100"


def document() -> str:
    """Return the page, of the bundled entrypoints alone."""
    return "\n\n".join(part.strip("\n") for part in _page()) + "\n"


def _page() -> Iterator[str]:
    yield _INTRO
    entrypoints = sorted(one.name for one in choices() if one.group == "entrypoint" and one.package == OURS)
    for command in sorted({*COMMANDS, *entrypoints}):
        text = help_of(command)
        yield f"## {command}"
        yield _block(text)
        inner = re.findall(_NESTED[command], text, re.MULTILINE) if command in _NESTED else ()
        for name in inner:
            yield f"### {command} {name}"
            yield _block(help_of(command, name))


def help_of(*command: str) -> str:
    """Return what `multitalk COMMAND --help` prints in 100 columns. Raises EngineError if there is no such command."""
    printed, width = io.StringIO(), os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = _COLUMNS
    try:
        with contextlib.redirect_stdout(printed):
            status = main([*command, "--help"])
    finally:
        os.environ.pop("COLUMNS")
        if width is not None:
            os.environ["COLUMNS"] = width
    if status:
        raise EngineError(f"multitalk {' '.join(command)} --help failed", field="command line")
    return printed.getvalue()


def _block(text: str) -> str:
    return f"```text\n{text.strip()}\n```"


if __name__ == "__main__":
    print(document(), end="")
