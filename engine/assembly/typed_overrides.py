"""An override as a person types it -> the same in Hydra's grammar.

Hydra reads a value without quotes only if it consists of certain characters: no letters beyond ASCII, no parentheses,
no `@`, `#` or `=`, no single quotes. A value that Hydra cannot read is taken as plain text, unless it begins like a
list, an object or a quoted text.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

#: A key with its possible prefix, and a value.
_WORD = re.compile(r"([~+]{0,2}[A-Za-z_][\w./@:-]*)=(.*)", re.DOTALL | re.ASCII)
_PAIRS = {"[": "]", "{": "}"}


def readable(words: Iterable[str], *, several: bool = False) -> list[str]:
    """Return `words` with quotes around the values that Hydra cannot read; everything else is unchanged.

    Entries of a list are treated one by one. With `several`, as in a sweep, so are the values between commas.
    """
    return [_readable(word, several=several) for word in words]


def as_text(key: str, text: str) -> str:
    """Return the override that sets `key` to `text`; an interpolation in it is kept."""
    return f"{key}={_quoted(text)}"


def shell_line(word: str) -> str:
    """Return what to type in a shell or in MULTITALK_OVERRIDES so that a word's value is taken as plain text."""
    match = _WORD.fullmatch(word)
    return shlex.quote(as_text(match[1], match[2]) if match else word)


@lru_cache(maxsize=2048)
def parse(word: str) -> Override | None:
    """Return a word as Hydra parses it, None if it cannot; the result is cached and must not be changed."""
    try:
        return OverridesParser.create().parse_override(word)
    except (HydraException, ValueError, RecursionError):
        return None


@lru_cache(maxsize=2048)
def _readable(word: str, *, several: bool) -> str:
    match = _WORD.fullmatch(word)
    if match is None or parse(word) is not None:
        return word
    key, value = match[1], match[2]
    inner = value.strip()
    if several and "," in value:
        result = ",".join(_entry(part) for part in _split(value))
    elif inner[:1] == "[" and inner[-1:] == "]":
        result = f"[{','.join(_entry(part) for part in _split(inner[1:-1]))}]"
    elif inner[:1] in ("[", "{", "'", '"'):
        # An unfinished list or quote is more likely a typing error than a text.
        return word
    else:
        result = _quoted(value)
    return next((line for line in (f"{key}={result}", as_text(key, value)) if parse(line) is not None), word)


def _entry(text: str) -> str:
    return text if parse(f"x={text}") is not None else _quoted(text.strip())


def _split(text: str) -> Iterator[str]:
    """Yield the parts between commas, ignoring commas within brackets or quotes."""
    start, closers, quote = 0, list[str](), ""
    for index, character in enumerate(text):
        if quote:
            quote = "" if character == quote and text[index - 1] != "\\" else quote
        elif character in "'\"" and not text[start:index].strip():
            quote = character
        elif character in _PAIRS:
            closers.append(_PAIRS[character])
        elif closers and character == closers[-1]:
            closers.pop()
        elif character == "," and not closers:
            yield text[start:index]
            start = index + 1
    yield text[start:]


def _quoted(text: str) -> str:
    # In Hydra's quotes, backslashes count only before a quote or at the end.
    mark = "'" if '"' in text else '"'
    text = re.sub(rf"(\\*){mark}", rf"\1\1\\{mark}", text)
    return mark + re.sub(r"(\\+)\Z", r"\1\1", text) + mark
