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

_HINT = "write data:image/png;base64,... and all of the file"
#: Letters taken at a time.
_STEP = 2**20
#: Letters within which the comma must come.
_HEAD = 1024
#: Up to the comma; one in quotes belongs to a parameter.
_BEFORE = re.compile(r"(?:[^\",]|\"(?:[^\"\\]|\\.)*\")*+,", re.DOTALL)
_BASE64 = re.compile(r"\s*base64\s*", re.IGNORECASE)
_NO_BASE64 = re.compile(rb"[^A-Za-z0-9+/]")


def decode_data(address: str, limit: int, into: Path) -> Path:
    """Write what a data: URL holds to a new file below `into`.

    Of base64 it takes either alphabet, with or without padding, and understands white space and percent signs; what is
    percent-encoded without base64 has to begin as a picture or a sound does. A piece at a time, so that beside the URL
    no second copy of it is held. Raises RequestError for anything else, for more than `limit` bytes and for a disk that
    takes no more, and then leaves no file.
    """
    found = _BEFORE.match(address[:_HEAD])
    if found is None:
        raise _wrong("the data: URL is not base64: it has no comma")
    start = found.end()
    encoded = any(_BASE64.fullmatch(part) for part in found[0][5:-1].split(";"))
    if not encoded and not _is_medium(_unquoted(address[start : start + 256])):
        text = address[start : start + 256].strip()
        if text[:7].lower() == "base64," or is_medium(text):
            raise _wrong("the data: URL is not base64: the word stands not before the comma, after a semicolon")
        raise _wrong("the data: URL is not base64")
    pieces = _decoded(_pieces(address, start)) if encoded else _pieces(address, start)
    path: Path | None = None
    try:
        with tempfile.NamedTemporaryFile(dir=into, prefix="data-", delete=False) as file:
            path = Path(file.name)
            for piece in pieces:
                file.write(piece)
                if file.tell() > limit:
                    what = f"the data: URL holds more than {limit} bytes"
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
    # An MP3 or AAC without tags begins with eleven bits; as base64 that would be no sign.
    return starts_medium(content) or (content[:1] == b"\xff" and content[1:2] >= b"\xe0")


def _pieces(address: str, start: int) -> Iterator[bytes]:
    """Yield what stands behind the comma, unquoted; an escape of several letters stays in one piece."""
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
    """Yield what base64 text stands for. Raises RequestError."""
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
        raise _wrong(f"this is not sound base64: it was cut off after {before} letters")
    yield base64.b64decode(rest + b"=" * (-len(rest) % 4))


def _what(text: bytes, wrong: re.Match[bytes] | None, before: int, *, padded: bool) -> str:
    if padded or wrong is None or wrong[0] == b"=":
        return "this is not sound base64: it goes on behind its padding, as if several texts were joined"
    other = text[wrong.start() : wrong.start() + 4].decode("utf-8", "replace")[:1]
    return f"this is not sound base64: it holds {other!r} after {before + wrong.start()} letters"


def _wrong(what: str) -> RequestError:
    return RequestError(what, hint=_HINT, code="bad_base64")


@hookimpl
def open_address(address: str, scheme: str, access: Access, into: Path) -> Path | None:
    """Decode a data: URL to a file below `into`."""
    return decode_data(address, access.max_bytes, into) if scheme == "data" else None
