"""data: URLs (RFC 2397), which carry a file as base64 text."""

from __future__ import annotations

import base64
import binascii
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote_to_bytes

from engine import Access, hookimpl
from engine.errors import RequestError

_HINT = "write data:image/png;base64,... with the standard alphabet"
#: Letters taken at a time.
_STEP = 2**20


def decode_data(address: str, limit: int, into: Path) -> Path:
    """Write what a base64 data: URL holds to a new file below `into`; white space and percent signs are understood.

    A piece at a time, so that beside the URL no second copy of it is held. Raises RequestError for anything but
    sound base64 and for more than `limit` bytes, and then leaves no file.
    """
    head, comma, _ = address[:1024].partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise RequestError("the data: URL is not base64", hint=_HINT, code="bad_base64")
    with tempfile.NamedTemporaryFile(dir=into, prefix="data-", delete=False) as file:
        path = Path(file.name)
        try:
            for piece in _pieces(address, len(head) + 1):
                file.write(base64.b64decode(piece, validate=True))
                if file.tell() > limit:
                    what = f"the data: URL holds more than {limit} bytes"
                    raise RequestError(what, hint="send a smaller file", code="file_too_large")
        except binascii.Error as error:
            path.unlink()
            what = f"the data: URL is not sound base64: {error}"
            raise RequestError(what, hint=_HINT, code="bad_base64") from error
        except BaseException:
            path.unlink()
            raise
    return path


def _pieces(address: str, start: int) -> Iterator[bytes]:
    """Yield the base64 text in whole groups of four letters; only the last piece may be ragged."""
    rest = b""
    while start < len(address):
        end = start + _STEP
        # A percent sign and its two digits stay together.
        while address[end - 2 : end].find("%") >= 0 and end < len(address):
            end += 1
        text = rest + b"".join(unquote_to_bytes(address[start:end]).split())
        whole = len(text) - len(text) % 4
        yield text[:whole]
        rest, start = text[whole:], end
    yield rest


@hookimpl
def open_address(address: str, scheme: str, access: Access, into: Path) -> Path | None:
    """Decode a data: URL to a file below `into`."""
    return decode_data(address, access.max_bytes, into) if scheme == "data" else None
