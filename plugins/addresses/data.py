"""data: URLs (RFC 2397), which carry a file as base64 text."""

from __future__ import annotations

import base64
import binascii
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote_to_bytes

from engine import Access, hookimpl
from engine.errors import RequestError
from engine.files.scratch import unwritable
from engine.text.base64_text import clean, is_medium, starts_medium

_HINT = "write data:image/png;base64, followed by the base64 text of the whole file"
#: Characters decoded at a time.
_STEP = 2**20
#: The comma must be among this many characters at the start.
_MAX_HEADER = 1024
#: Everything up to the comma; a comma in quotes belongs to a parameter.
_HEADER = re.compile(r"(?:[^\",]|\"(?:[^\"\\]|\\.)*\")*+,", re.DOTALL)
_BASE64 = re.compile(r"\s*base64\s*", re.IGNORECASE)
_NO_BASE64 = re.compile(rb"[^A-Za-z0-9+/]")


def decode_data(address: str, limit: int, into: Path) -> Path:
    """Write the content of a data: URL to a new file in `into`.

    Accepts both alphabets of base64, with or without padding, with white space and percent escapes. Percent-encoded
    content without base64 must begin like a picture or a sound. Decodes in pieces, so that memory holds only the URL.
    Raises RequestError for anything else, for more than `limit` bytes and for a full disk, and then leaves no file.
    """
    header = _HEADER.match(address[:_MAX_HEADER])
    if header is None:
        raise _wrong("the data: URL is not base64: it has no comma")
    start = header.end()
    encoded = any(_BASE64.fullmatch(part) for part in header[0][5:-1].split(";"))
    if not encoded and not _is_medium(_unquoted(address[start : start + 256])):
        text = address[start : start + 256].strip()
        if text[:7].lower() == "base64," or is_medium(text):
            raise _wrong("the data: URL is not base64: ';base64' must come before the comma")
        raise _wrong("the data: URL is not base64")
    pieces = _decoded(_pieces(address, start)) if encoded else _pieces(address, start)
    path: Path | None = None
    try:
        with tempfile.NamedTemporaryFile(dir=into, prefix="data-", delete=False) as file:
            path = Path(file.name)
            for piece in pieces:
                file.write(piece)
                if file.tell() > limit:
                    what = f"the data: URL contains more than {limit} bytes"
                    raise RequestError(what, hint="send a smaller file", code="file_too_large")
            file.flush()
    except BaseException as error:
        if path is not None:
            path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise unwritable(error) from error
        raise
    return path


def _is_medium(content: bytes) -> bool:
    # An MP3 or AAC file without tags begins with eleven set bits: too few to recognise in base64, enough here.
    return starts_medium(content) or (content[:1] == b"\xff" and content[1:2] >= b"\xe0")


def _pieces(address: str, start: int) -> Iterator[bytes]:
    """Yield the text after the comma, without percent encoding; no escape sequence is split between two pieces."""
    while start < len(address):
        end = start + _STEP
        begins = max(address.rfind("%", end - 2, end), address.rfind("\\", end - 5, end))
        if begins >= 0:
            end = begins + (6 if address[begins] == "\\" and address[begins + 1 : begins + 2] == "u" else 3)
        yield _unquoted(address[start:end])
        start = end


def _unquoted(text: str) -> bytes:
    return unquote_to_bytes(text.encode("utf-8", "surrogatepass"))


def _decoded(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the bytes that base64 text encodes. Raises RequestError."""
    rest, before, padded = b"", 0, False
    for piece in pieces:
        text = clean(piece)
        ended = text.rstrip(b"=")
        if (wrong := _NO_BASE64.search(ended)) or (padded and ended):
            raise _wrong(_what(ended, wrong, before, padded=padded))
        padded = padded or len(ended) < len(text)
        before += len(ended)
        ended = rest + ended
        whole = len(ended) - len(ended) % 4
        rest = ended[whole:]
        yield binascii.a2b_base64(ended[:whole])
    if len(rest) == 1:
        raise _wrong(f"invalid base64: it is cut off after {before} characters")
    yield base64.b64decode(rest + b"=" * (-len(rest) % 4))


def _what(text: bytes, wrong: re.Match[bytes] | None, before: int, *, padded: bool) -> str:
    if padded or wrong is None or wrong[0] == b"=":
        return "invalid base64: it continues after its padding, as if several texts were joined"
    other = text[wrong.start() : wrong.start() + 4].decode("utf-8", "replace")[:1]
    return f"invalid base64: it contains {other!r} after {before + wrong.start()} characters"


def _wrong(what: str) -> RequestError:
    return RequestError(what, hint=_HINT, code="bad_base64")


@hookimpl
def open_address(address: str, scheme: str, access: Access, into: Path) -> Path | None:
    """Decode a data: URL to a file in `into`."""
    return decode_data(address, access.max_bytes, into) if scheme == "data" else None
