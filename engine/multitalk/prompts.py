"""Prompts as the text encoder's tokenizer sees them: mended, counted, and what is cut off. Imports no torch."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

#: Characters of lost words that a warning shows.
_SHOWN = 300
#: A word is shown whole where its first part is kept; writing without blanks has no words of a length.
_WORD = 40
#: Of the transformer's config, where it does not say how many tokens it takes.
_TEXT_LEN = 512


def clean_prompt(prompt: str) -> str:
    """Mend broken encodings, resolve HTML entities (twice over) and make every run of white space one blank."""
    import ftfy

    return re.sub(r"\s+", " ", html.unescape(html.unescape(ftfy.fix_text(prompt)))).strip()


def surely_whole(cleaned: str, text_len: int) -> bool:
    """Say whether a cleaned prompt cannot have more than `text_len` tokens: each has a byte at least, or ends it."""
    # A tokenizer may put a blank in front.
    return len(cleaned.encode("utf-8", "replace")) + 2 <= text_len


def lost_words(cleaned: str, offsets: Sequence[tuple[int, int]], text_len: int) -> str:
    """Return what of a cleaned prompt is cut off; "" for nothing.

    `offsets` are the places (begin, end) of its tokens in it, the end token's last; `text_len` tokens are kept, of
    which the last is an end token. A word that is cut in the middle is lost.
    """
    if len(offsets) <= text_len:
        return ""
    begin = offsets[max(0, text_len - 1)][0]
    blank = cleaned.rfind(" ", 0, begin)
    if cleaned[begin : begin + 1] != " " and begin - blank <= _WORD:
        begin = blank + 1
    return cleaned[begin:].strip()


def tell_lost(what: str, lost: str, text_len: int) -> str:
    """Return the warning about words that are lost of a prompt; `what` names it."""
    words = len(lost.split())
    shown = lost if len(lost) <= _SHOWN else f"{lost[:_SHOWN]}..."
    count = "1 word has" if words == 1 else f"{words} words have"
    return (
        f"the {what} is longer than the text encoder takes ({text_len} tokens): its last {count} no effect: {shown!r}"
    )


def lost_of_file(tokenizer: Path, config: Path, prompt: str) -> tuple[str, int]:
    """Return what of a prompt is cut off, and the number of tokens that are kept, from the weights' own small files.

    `tokenizer` is its folder, `config` the transformer's config. Nothing is found lost where they are of another kind
    than a fast tokenizer's.
    """
    text_len = _text_len(config)
    cleaned = clean_prompt(prompt)
    file = tokenizer / "tokenizer.json"
    if surely_whole(cleaned, text_len) or not file.is_file():
        return "", text_len
    encoding = _tokenizer(file, file.stat().st_mtime_ns).encode(cleaned)
    return lost_words(cleaned, encoding.offsets, text_len), text_len


def _text_len(config: Path) -> int:
    try:
        told = json.loads(config.read_text("utf-8")).get("text_len", _TEXT_LEN)
        return int(told)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return _TEXT_LEN


@lru_cache(maxsize=2)
def _tokenizer(file: Path, _changed: int) -> Any:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
