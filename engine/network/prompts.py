"""Clean prompts, count their tokens, and find what the text encoder cuts off. Imports no torch."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

#: Maximum characters of lost words that a warning shows.
_SHOWN = 300
#: Maximum length of a word that a warning shows whole; scripts without spaces have no such words.
_WORD = 40
#: Number of tokens if the transformer's config does not state it.
_TEXT_LEN = 512


def clean_prompt(prompt: str) -> str:
    """Fix broken encodings, resolve HTML entities (twice) and replace every run of white space by one space."""
    import ftfy

    return re.sub(r"\s+", " ", html.unescape(html.unescape(ftfy.fix_text(prompt)))).strip()


def surely_whole(cleaned: str, text_len: int) -> bool:
    """Return whether a cleaned prompt surely fits `text_len` tokens: each token except the last has at least a byte."""
    # A tokenizer may add a space in front.
    return len(cleaned.encode("utf-8", "replace")) + 2 <= text_len


def lost_words(cleaned: str, offsets: Sequence[tuple[int, int]], text_len: int) -> str:
    """Return the end of a cleaned prompt that is cut off; "" if nothing is.

    `offsets` are the positions (begin, end) of its tokens, the end token last; `text_len` tokens are kept, the last of
    which is an end token. A word that is cut in the middle counts as cut off.
    """
    if len(offsets) <= text_len:
        return ""
    begin = offsets[max(0, text_len - 1)][0]
    space = cleaned.rfind(" ", 0, begin)
    if cleaned[begin : begin + 1] != " " and begin - space <= _WORD:
        begin = space + 1
    return cleaned[begin:].strip()


def tell_lost(what: str, lost: str, text_len: int) -> str:
    """Return the warning about words of a prompt that are cut off; `what` names the prompt."""
    words = len(lost.split())
    excerpt = lost if len(lost) <= _SHOWN else f"{lost[:_SHOWN]}..."
    count = "1 word has" if words == 1 else f"{words} words have"
    return (
        f"the {what} is longer than the text encoder takes ({text_len} tokens): its last {count} no effect: {excerpt!r}"
    )


def lost_of_file(tokenizer: Path, config: Path, prompt: str) -> tuple[str, int]:
    """Return the end of a prompt that is cut off, and the number of tokens kept, from small files of the weights.

    `tokenizer` is the tokenizer's folder, `config` the transformer's config. Returns "" if the files are not those of a
    fast tokenizer.
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
        length = json.loads(config.read_text("utf-8")).get("text_len", _TEXT_LEN)
        return int(length)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return _TEXT_LEN


@lru_cache(maxsize=2)
def _tokenizer(file: Path, _changed: int) -> Any:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
