"""Help texts at the width of the terminal."""

from __future__ import annotations

import argparse
import re
from typing import Any

from engine.text.terminal import columns, hanging, headings

#: Width of a help that is not printed on a terminal.
WIDTH = 100


def width() -> int:
    """Return the width of help texts."""
    return columns() or WIDTH


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """argparse's, at the terminal's width, with the flags in a narrow column."""

    def __init__(self, prog: str, **arguments: Any) -> None:
        super().__init__(prog, width=width(), max_help_position=28 if width() < 100 else 32, **arguments)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        # argparse repeats the value's name behind each name of the flag.
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        value = self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{', '.join(action.option_strings)} {value}"


def fit_help(text: str) -> str:
    """Return a help text with the lines that are too long wrapped, and its headings in bold."""
    lines: list[str] = []
    for line in text.splitlines():
        head = re.match(r"usage: multitalk [\w-]+ |usage: |\s*", line)
        assert head is not None
        lines += hanging(head[0], line[head.end() :], width())
    return headings("\n".join(lines) + "\n")
