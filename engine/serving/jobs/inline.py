"""Base64 text in the place of an address -> a data: URL."""

from __future__ import annotations

import re
from pathlib import Path

from engine.errors import RequestError
from engine.text.base64_text import bare, first_other, is_base64, is_medium

#: Without the first bytes of a known medium, a shorter text is an address.
_LEAST = 65
#: Longest name of a file, and longest path: NAME_MAX and PATH_MAX of Linux.
_NAME, _PATH = 255, 4096
#: A longer path would have a dot somewhere, and base64 has none.
_LONG = 512
_SCHEME = re.compile(r"data:|[A-Za-z][A-Za-z0-9+.-]+://", re.IGNORECASE)
_STANDARD = re.compile(r"[A-Za-z0-9+/\s]++={0,2}\s*+")
#: How a path begins, and no base64 text of a picture or a sound: a JPEG begins with /9j/, an MP3 with // and a letter.
_ROOT = re.compile(r"/(?!9j/|/)")


def as_address(text: str, *, field: str, folder: Path | None = None) -> str:
    """Return `text` as it is, or in front of it what makes bare base64 a data: URL.

    Blanks around it do not count, nor do quotes around an address. Base64 is known by the first bytes of a picture or a
    sound, by its length where no path is so long, or, of the standard alphabet and padded, by more than 64 letters that
    do not look like a path. Either alphabet, with or without padding, with broken lines. Nothing is decoded; the one
    copy is the URL itself. A relative path counts from `folder`, if there is one. Raises RequestError for a text of
    blanks, and for one that is too long for a path and no base64.
    """
    text = bare(text)
    if len(text) > 2 and text[0] == text[-1] and text[0] in "'\"":
        inner = bare(text[1:-1])
        text = inner if _SCHEME.match(inner) or _is_inline(inner) else text
    if not text:
        raise RequestError("there is nothing but blanks", field=field, hint=_HINT, code="out_of_range")
    if _SCHEME.match(text):
        return text
    if _is_inline(text):
        return f"data:application/octet-stream;base64,{text}"
    if len(text) <= _PATH:
        return _from(folder, text)
    place, other = first_other(text)
    why = f"it holds {other!r} at place {place}" if other else "its length is none that base64 has: it was cut off"
    raise RequestError(
        f"a text of {len(text)} letters is no address and no sound base64: {why}",
        field=field,
        hint="send all of it, and nothing else, or a URL",
        code="bad_base64",
    )


_HINT = "give a URL, a data: URL or base64 text"


def _is_inline(text: str) -> bool:
    if len(text) <= _PATH and _ROOT.match(text) and not is_medium(text):
        return False
    # The longest part first: no look at each character is wasted on an ordinary path.
    if not is_base64(text):
        return False
    if is_medium(text):
        return True
    letters = len(text) - sum(text.count(blank) for blank in " \t\r\n\v\f")
    escaped = "\\" in text or "%" in text
    if letters < _LEAST or (letters % 4 == 1 and not escaped):
        return False
    if letters % 4 == 0 and _STANDARD.fullmatch(text):
        return True
    return len(text) > _LONG or max(map(len, text.split("/"))) > _NAME


def _from(folder: Path | None, path: str) -> str:
    return path if folder is None or not path else str(folder / path)
