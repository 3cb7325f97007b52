"""Turns base64 text in the place of an address into a data: URL."""

from __future__ import annotations

import re
from pathlib import Path

from engine.errors import RequestError
from engine.text.base64_text import bare, first_other, is_base64, is_medium

#: A shorter text is taken as an address, unless it begins with the first bytes of a known media format.
_LEAST = 65
#: Longest name of a file, and longest path: NAME_MAX and PATH_MAX of Linux.
_NAME, _PATH = 255, 4096
#: A longer text without a dot is taken as base64: a path of that length would have a dot.
_LONG = 512
_SCHEME = re.compile(r"data:|[A-Za-z][A-Za-z0-9+.-]+://", re.IGNORECASE)
_STANDARD = re.compile(r"[A-Za-z0-9+/\s]++={0,2}\s*+")
#: The beginning of a path. Base64 of a picture or a sound does not begin so: a JPEG begins with /9j/, an MP3 with //.
_ROOT = re.compile(r"/(?!9j/|/)")


def as_address(text: str, *, field: str, folder: Path | None = None) -> str:
    """Return `text` as an address: bare base64 gets the prefix of a data: URL, other text is returned as it is.

    Spaces around the text, and quotes around an address, are removed. Text is taken as base64 if it begins with the
    first bytes of a picture or a sound, if it is too long for a path, or if it is padded, of the standard alphabet,
    longer than 64 characters and does not look like a path. Both alphabets are accepted, with or without padding and
    with line breaks. Nothing is decoded; the only copy is the URL itself. A relative path is relative to `folder`, if
    there is one. Raises RequestError for empty text, and for text that is too long for a path and not base64.
    """
    text = bare(text)
    if len(text) > 2 and text[0] == text[-1] and text[0] in "'\"":
        inner = bare(text[1:-1])
        text = inner if _SCHEME.match(inner) or _is_inline(inner) else text
    if not text:
        raise RequestError("the text has only spaces", field=field, hint=_HINT, code="out_of_range")
    if _SCHEME.match(text):
        return text
    if _is_inline(text):
        return f"data:application/octet-stream;base64,{text}"
    if len(text) <= _PATH:
        return _join(folder, text)
    place, other = first_other(text)
    why = f"it has {other!r} at position {place}" if other else "it is truncated: base64 never has that length"
    raise RequestError(
        f"a text of {len(text)} characters is neither an address nor valid base64: {why}",
        field=field,
        hint="send the whole base64 text and nothing else, or a URL",
        code="bad_base64",
    )


_HINT = "give a URL, a data: URL or base64 text"


def _is_inline(text: str) -> bool:
    if len(text) <= _PATH and _ROOT.match(text) and not is_medium(text):
        return False
    # The cheap test first: an ordinary path must not cost a test of each character.
    if not is_base64(text):
        return False
    if is_medium(text):
        return True
    count = len(text) - sum(text.count(space) for space in " \t\r\n\v\f")
    escaped = "\\" in text or "%" in text
    if count < _LEAST or (count % 4 == 1 and not escaped):
        return False
    if count % 4 == 0 and _STANDARD.fullmatch(text):
        return True
    return len(text) > _LONG or max(map(len, text.split("/"))) > _NAME


def _join(folder: Path | None, path: str) -> str:
    return path if folder is None or not path else str(folder / path)
