"""Text on which a terminal or a reader acts."""

from __future__ import annotations

import unicodedata

HOSTILE = "\x1b]0;owned\x07\x1b[2J\x1b[31mred\x9b31m\x7f\u202egnp.exe\u2066\r\n\u2028\ud800\U000e0041"


def acts(text: str) -> str:
    """Return the characters of `text` on which a terminal or a reader acts."""
    return "".join(one for one in text if unicodedata.category(one) in ("Cc", "Cf", "Cs", "Zl", "Zp"))
