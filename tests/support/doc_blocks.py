"""The fenced blocks of the documents, and what their marks say about running them.

A mark is an HTML comment above the block, which readers do not see:

    <!-- not run: REASON -->            nothing here can run it
    <!-- planned: REASON -->            the config of its commands is composed, and no more
    <!-- run by: tests/FILE.py -->      another test runs it
    <!-- file: examples/FILE -->        it is that file's text
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "engine" / "examples").glob("*.md")),
]
#: Of what is no command: output, trees of folders, formulas.
TEXT = ("text",)
LANGUAGES = ("bash", "console", "python", "json", "yaml", "toml", *TEXT)


@dataclass(frozen=True)
class Block:
    """A fenced block: its page, the line of its fence, its language, text without indentation, and mark."""

    page: Path
    line: int
    language: str
    text: str
    mark: str
    reason: str

    @property
    def name(self) -> str:
        """The page and line, as a test's id."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks() -> list[Block]:
    """Return all blocks of all pages, in order."""
    return [block for page in PAGES for block in read(page)]


def read(page: Path) -> Iterator[Block]:
    """Yield the blocks of a page."""
    lines = page.read_text("utf-8").split("\n")
    number = 0
    while number < len(lines):
        fence = re.match(r"^( *)(`{3,})(\w*)", lines[number])
        if fence is None:
            number += 1
            continue
        end = next(n for n in range(number + 1, len(lines)) if lines[n].strip() == fence[2])
        text = "\n".join(line[len(fence[1]) :] for line in lines[number + 1 : end])
        mark, reason = _mark(lines[:number])
        yield Block(page, number + 1, fence[3], text, mark, reason)
        number = end + 1


def _mark(before: list[str]) -> tuple[str, str]:
    above = next((line.strip() for line in reversed(before) if line.strip()), "")
    found = re.fullmatch(r"<!-- (not run|planned|run by|file): (\S.*) -->", above)
    return (found[1], found[2]) if found else ("", "")


def commands(text: str) -> list[str]:
    """Return the command lines of a bash block, continued lines joined, without comments."""
    joined = re.sub(r"\\\n\s*", " ", text)
    return [line for line in joined.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def console(text: str) -> Iterator[tuple[str, list[str]]]:
    """Yield each command of a console block, without its prompt, and the lines that it prints."""
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, _, printed = re.sub(r"\\\n\s*", " ", part).partition("\n")
        yield command, printed.rstrip("\n").splitlines()


def words(line: str) -> tuple[dict[str, str], list[str]]:
    """Return the variables that a command line sets, and its words."""
    every = shlex.split(line, comments=True)
    variables = {}
    while every and re.match(r"[A-Z_]+=", every[0]):
        name, _, value = every.pop(0).partition("=")
        variables[name] = value
    return variables, every


def is_ours(every: list[str]) -> bool:
    """Return whether a command is `multitalk`, in whatever folder."""
    return bool(every) and Path(every[0]).name == "multitalk"
