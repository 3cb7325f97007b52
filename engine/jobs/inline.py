"""Base64 text in the place of an address -> a data: URL."""

from __future__ import annotations

import re
from pathlib import Path

from engine.errors import RequestError

#: No file worth sending is smaller; a shorter text is an address.
_LEAST = 65
#: PATH_MAX of Linux. A longer text without a scheme is no path.
_PATH = 4096
_SCHEME = re.compile(r"data:|[A-Za-z][A-Za-z0-9+.-]+://", re.IGNORECASE)
_BASE64 = re.compile(r"[A-Za-z0-9+/\r\n]++={0,2}[\r\n]*+")
#: How a path begins, and no base64 text of a picture or a sound: a JPEG begins with /9j/, an MP3 with // and a letter.
_ROOT = re.compile(r"/(?!9j/|/)")


def as_address(text: str, *, field: str, folder: Path | None = None) -> str:
    """Return `text` as it is, or in front of it what makes bare base64 a data: URL.

    Bare base64 is of the standard alphabet and padded (lines may be broken), has more than 64 letters and does not look
    like a path. Nothing is decoded; the one copy is the URL itself. A relative path counts from `folder`, if there is
    one. Raises RequestError for a text that is too long for a path and neither of both: base64 that was cut off, or of
    another alphabet.
    """
    if _SCHEME.match(text):
        return text
    if len(text) < _LEAST or (len(text) <= _PATH and _ROOT.match(text)):
        return _from(folder, text)
    letters = len(text) - text.count("\n") - text.count("\r")
    if letters % 4 == 0 and letters >= _LEAST and _BASE64.fullmatch(text):
        return f"data:application/octet-stream;base64,{text}"
    if len(text) <= _PATH:
        return _from(folder, text)
    raise RequestError(
        f"a text of {len(text)} letters is no address and no sound base64",
        field=field,
        hint="send all of it, in the standard alphabet and with its padding, or a URL",
        code="bad_base64",
    )


def _from(folder: Path | None, path: str) -> str:
    return path if folder is None or not path else str(folder / path)
