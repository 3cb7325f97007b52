"""Base64 as people send it: find base64 in a text, and whether it begins like a picture or sound."""

from __future__ import annotations

import base64
import binascii
import re
from urllib.parse import unquote_to_bytes

#: Characters of base64, of both alphabets (RFC 4648, sections 4 and 5), and what may be between them in texts that
#: were wrapped, escaped twice (`\\n`, `\\/`, `\\u003d`) or percent-encoded.
_ALLOWED = re.compile(
    r"(?:[A-Za-z0-9+/_\s-]++|\\[nrt/]|\\u00(?:2[bBfF]|3[dD])|%(?:2[BbFf]|3[Dd]|0[AaDd]|20))++"
    r"(?:[=\s]++|\\[nrt]|\\u003[dD]|%(?:3[Dd]|0[AaDd]|20))*+"
)
#: Escape sequences of JSON and others.
_ESCAPE = re.compile(rb"\\(?:[nrt]|u003[dD]|u002[bBfF]|/)")
_ESCAPED = {b"\\/": b"/", b"\\u003d": b"=", b"\\u002b": b"+", b"\\u002f": b"/"}
#: The URL-safe alphabet -> the standard one.
_STANDARD = bytes.maketrans(b"-_", b"+/")
_BLANKS = b" \t\r\n\v\f"
#: Spaces outside ASCII that copying leaves in a text: no-break space, zero-width space, byte order mark.
_WIDE = (b"\xc2\xa0", b"\xe2\x80\x8b", b"\xef\xbb\xbf")
#: First bytes of picture and sound files: at least three bytes each, so that paths rarely look like one.
_MEDIA = re.compile(
    rb"\x89PNG|\xff\xd8\xff|GIF8|RIFF|RIFX|RF64|II\*\0|MM\0\*|ID3|fLaC|OggS|FORM|caff|#!AMR|\x1a\x45\xdf\xa3"
    rb"|\0\0\0\x0cjP|.{4}ftyp",
    re.DOTALL,
)
_BYTES = re.compile(r"b(['\"])(.*)\1", re.DOTALL)


def bare(text: str) -> str:
    """Return `text` without surrounding white space, and without the b'...' of Python's repr of bytes."""
    text = text.strip().strip("\ufeff\u200b").strip()
    match = _BYTES.fullmatch(text)
    return match[2].strip() if match and is_base64(match[2]) else text


def is_base64(text: str) -> bool:
    """Return whether `text` has only base64 characters and what may be between them."""
    return _ALLOWED.fullmatch(text) is not None


def first_other(text: str) -> tuple[int, str]:
    """Return the position (from 1) of the first character that is not base64, and the character."""
    match = _ALLOWED.match(text)
    place = match.end() if match else 0
    return place + 1, text[place : place + 1]


def is_medium(text: str) -> bool:
    """Return whether `text`, decoded as base64, begins like a picture or a sound."""
    head = clean(unquote_to_bytes(text[:160].encode("utf-8", "replace")))[:32]
    try:
        return starts_medium(base64.b64decode(head[: len(head) - len(head) % 4]))
    except binascii.Error:
        return False


def starts_medium(content: bytes) -> bool:
    """Return whether the first bytes of a file are those of a picture or a sound."""
    return _MEDIA.match(content) is not None


def clean(piece: bytes) -> bytes:
    """Return `piece` in the standard alphabet, without white space and escapes; other characters stay in it."""
    if b"\\" in piece:
        piece = _ESCAPE.sub(lambda match: _ESCAPED.get(match[0].lower(), b""), piece)
    if not piece.isascii():
        for blank in _WIDE:
            piece = piece.replace(blank, b"")
    return piece.translate(_STANDARD, _BLANKS)
