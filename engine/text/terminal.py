"""Width, colours and wrapped tables of a terminal; plain text everywhere else."""

from __future__ import annotations

import os
import re
import sys
import textwrap
import unicodedata
from collections.abc import Iterable
from typing import TextIO

#: SGR codes of the styles in use.
_STYLES = {"bold": "1", "dim": "2", "red": "1;31", "green": "32", "yellow": "33", "cyan": "36"}
#: Narrowest width that is wrapped to.
_LEAST = 40
_COLOURS = re.compile(r"\x1b\[[\d;]*m")
_HEADING = re.compile(r"^(usage:|[\w ]+:)", re.MULTILINE)


def columns(stream: TextIO | None = None) -> int | None:
    """Return the width of the terminal that `stream` (default: stdout) writes to; None: not a terminal, no limit.

    A number in COLUMNS wins, for a terminal and elsewhere.
    """
    given = os.environ.get("COLUMNS", "")
    if given.isascii() and given.isdigit() and int(given):
        return max(_LEAST, int(given))
    if not _is_terminal(stream := stream or sys.stdout):
        return None
    try:
        return max(_LEAST, os.get_terminal_size(stream.fileno()).columns or 80)
    except (OSError, ValueError):
        return 80


def coloured(stream: TextIO | None = None) -> bool:
    """Return whether `stream` (default: stdout) gets colours.

    NO_COLOR turns them off; FORCE_COLOR and CLICOLOR_FORCE turn them on; else they need a terminal that is not dumb.
    """
    if os.environ.get("NO_COLOR"):
        return False
    for name in ("FORCE_COLOR", "CLICOLOR_FORCE"):
        if os.environ.get(name, "0") not in ("", "0"):
            return True
    if os.environ.get("TERM") in ("dumb", "unknown") or os.environ.get("CLICOLOR") == "0":
        return False
    return _is_terminal(stream or sys.stdout)


def styled(text: str, style: str, stream: TextIO | None = None) -> str:
    """Return `text` in a style (bold, dim, red, green, yellow, cyan) where `stream` gets colours."""
    return f"\x1b[{_STYLES[style]}m{text}\x1b[0m" if text and coloured(stream) else text


def headings(text: str) -> str:
    """Return a help text with its headings in bold, where stdout gets colours."""
    return _HEADING.sub(lambda match: styled(match[0], "bold"), text) if coloured() else text


def hanging(head: str, text: str, width: int | None, *, style: str = "", stream: TextIO | None = None) -> list[str]:
    """Return `head` followed by `text`, wrapped at `width`; lines after the first begin below the text.

    A word that is longer than the line, such as a path, stays whole. `head` gets the style.
    """
    shown = styled(head, style, stream) if style else head
    indent = cells(head)
    if width is None or indent + cells(text) <= width:
        return [f"{shown}{text}".rstrip()]
    if indent > width // 2 or (indent > 4 and indent + max(map(cells, text.split()), default=0) > width):
        # No room beside the head.
        indent = min(indent, 4)
        lines = [shown.rstrip()] if head.strip() else []
        shown = shown if head.strip() else " " * indent
    else:
        lines = []
    # Columns of a table that no longer fit beside each other need no padding.
    for line in wrapped(re.sub(r" {3,}", "  ", text), width - indent):
        lines.append(f"{' ' * indent if lines else shown}{line}")
    return lines


def wrapped(text: str, width: int) -> list[str]:
    """Return `text` in lines of at most `width` cells; longer words stay whole."""
    if text.isascii():
        return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False) or [""]
    lines, line = [], ""
    for word in text.split():
        if line and cells(line) + 1 + cells(word) > width:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}" if line else word
    return [*lines, line]


def table(rows: Iterable[tuple[str, str]], width: int | None, *, indent: int = 2, widest: int = 26) -> list[str]:
    """Return rows of a name and a text, the texts below each other and wrapped at `width`."""
    rows = list(rows)
    column = min(widest, max((cells(name) for name, _ in rows), default=0))
    lines: list[str] = []
    for name, text in rows:
        pad = " " * indent
        if cells(name) > column and text:
            lines.append(pad + styled(name, "cyan"))
            name = ""
        head = pad + name + " " * (column - cells(name) + 2)
        lines += hanging(head, text, width, style="cyan" if name else "")
    return lines


def cells(text: str) -> int:
    """Return how many cells of a terminal `text` takes; colours take none."""
    if "\x1b" in text:
        text = _COLOURS.sub("", text)
    if text.isascii():
        return len(text)
    return sum(_cell(character) for character in text)


def tell(kind: str, text: str) -> None:
    """Write `multitalk: KIND: text` to stderr, on a terminal wrapped and with its kind in colour.

    `kind`: "error", "warning", or "" for neither. `text` has no control characters.
    """
    stream = sys.stderr
    if stream is None:
        return
    head = f"multitalk: {kind}: " if kind else "multitalk: "
    style = {"error": "red", "warning": "yellow"}.get(kind, "dim")
    width = columns(stream)
    lines = [head + text]
    if width is not None and cells(lines[0]) > width:
        lines = [line if not index else f"  {line}" for index, line in enumerate(wrapped(lines[0], width - 2))]
    if lines[0].startswith(head):
        lines[0] = styled(head.rstrip(), style, stream) + " " + lines[0].removeprefix(head)
    # In one call, because several threads write.
    stream.write("\n".join(lines) + "\n")
    stream.flush()


def is_live(stream: TextIO) -> bool:
    """Return whether a line of `stream` can be drawn again: a terminal that is not dumb."""
    return _is_terminal(stream) and os.environ.get("TERM") not in ("dumb", "unknown")


def _is_terminal(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except ValueError:
        return False


def _cell(character: str) -> int:
    if unicodedata.combining(character) or unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
