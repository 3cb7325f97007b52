"""Text of strangers' files -> text that a terminal only shows: nothing moves the cursor or turns the line round."""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Any

#: The joiners are within words of Persian and Hindi, and within emoji; they move nothing.
_HARMLESS = "\u200c\u200d"
#: All that is not a printable ASCII character is looked at.
_OTHERS = re.compile(r"[^ -~]")
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def plain(text: str) -> str:
    """Return `text` in one line, with every character that a terminal or a reader acts on written as its escape.

    These are control characters (C0, DEL, C1), formats such as those that turn the direction of writing, breaks of
    lines and paragraphs, and halves of characters (surrogates).
    """
    return _OTHERS.sub(lambda match: _shown(match[0]), text)


def plain_json(value: Any) -> str:
    """Return `value` as JSON in one line of ASCII without control characters. Raises ValueError for NaN."""
    # The one control character that JSON leaves as it is.
    return json.dumps(value, default=str, allow_nan=False).replace("\x7f", "\\u007f")


def _shown(letter: str) -> str:
    if unicodedata.category(letter) not in ("Cc", "Cf", "Cs", "Zl", "Zp") or letter in _HARMLESS:
        return letter
    return _SHORT.get(letter) or letter.encode("unicode_escape", "surrogatepass").decode("ascii")
