"""An override as a person types it -> the same in Hydra's grammar.

Hydra reads a value without quotes only if it is made of few characters: no letters beyond ASCII, no parentheses, no
`@`, `#` or `=`, no single quotes. A value that it cannot read at all is meant as the text that it is,
unless it begins as a list, an object or in quotes.
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

#: A key with what may stand before it, and a value.
_WORD = re.compile(r"([~+]{0,2}[A-Za-z_][\w./@:-]*)=(.*)", re.DOTALL | re.ASCII)
_PAIRS = {"[": "]", "{": "}"}


def readable(words: Iterable[str], *, several: bool = False) -> list[str]:
    """Return `words` with the values quoted that Hydra cannot read; everything else stays as it is.

    Within a list each entry is looked at by itself; with `several`, as a sweep has them, so is each value between
    commas.
    """
    return [_readable(word, several=several) for word in words]


def as_text(key: str, text: str) -> str:
    """Return the override that sets `key` to `text`; an interpolation in it stays one."""
    return f"{key}={_quoted(text)}"


def shell_line(word: str) -> str:
    """Return what to type in a shell, or in MULTITALK_OVERRIDES, so that a word's value is taken as the text it is."""
    match = _WORD.fullmatch(word)
    return shlex.quote(as_text(match[1], match[2]) if match else word)


@lru_cache(maxsize=2048)
def parse(word: str) -> Override | None:
    """Return what Hydra understands by a word, None for nothing; it must not be changed."""
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
        made = ",".join(_entry(part) for part in _split(value))
    elif inner[:1] == "[" and inner[-1:] == "]":
        made = f"[{','.join(_entry(part) for part in _split(inner[1:-1]))}]"
    elif inner[:1] in ("[", "{", "'", '"'):
        # Begun as a list or in quotes, and not ended: more likely a slip than a text.
        return word
    else:
        made = _quoted(value)
    return next((line for line in (f"{key}={made}", as_text(key, value)) if parse(line) is not None), word)


def _entry(text: str) -> str:
    return text if parse(f"x={text}") is not None else _quoted(text.strip())


def _split(text: str) -> Iterator[str]:
    """Yield what stands between commas, but for those within brackets or quotes."""
    begun, waiting, quote = 0, list[str](), ""
    for place, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote and text[place - 1] != "\\" else quote
        elif letter in "'\"" and not text[begun:place].strip():
            quote = letter
        elif letter in _PAIRS:
            waiting.append(_PAIRS[letter])
        elif waiting and letter == waiting[-1]:
            waiting.pop()
        elif letter == "," and not waiting:
            yield text[begun:place]
            begun = place + 1
    yield text[begun:]


def _quoted(text: str) -> str:
    # In Hydra's quotes, backslashes count only where they stand before a quote or at the end.
    mark = "'" if '"' in text else '"'
    text = re.sub(rf"(\\*){mark}", rf"\1\1\\{mark}", text)
    return mark + re.sub(r"(\\+)\Z", r"\1\1", text) + mark
