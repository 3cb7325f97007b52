"""Download a URL to a local file, within the limits of an Access."""

from __future__ import annotations

import http.client
import re
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path

from engine.data import Access
from engine.errors import RequestError
from engine.net.guard import Resolver, Url, connect, connection_failed, look_up, timed_out
from engine.net.sockets import Wire

#: Bytes that are read, or decompressed, at a time.
_STEP = 2**16
#: Statuses with which the body is the whole file.
_WHOLE = (200, 203)


def deadline_of(access: Access) -> float:
    """Return the deadline of a download that begins now, on the clock of `time.monotonic`."""
    deadline = time.monotonic() + access.timeout
    return deadline if access.until is None else min(deadline, access.until)


class Answer:
    """A server's answer: status and headers; the body has not been received yet."""

    def __init__(self, url: Url, wire: Wire, response: http.client.HTTPResponse) -> None:
        self.url = url
        self.status = response.status
        self._wire = wire
        self._response = response

    def header(self, name: str) -> str:
        """Return a header's value, "" if it is absent. Messages must not quote it: the server chose it."""
        return ", ".join(value.strip() for value in self._response.headers.get_all(name) or ())

    def beginning(self, size: int) -> bytes:
        """Return the first `size` bytes of the body, still compressed if it is. Raises RequestError."""
        buffer = bytearray(size)
        with _as_request_error(self.url):
            return bytes(buffer[: self._response.readinto(buffer)])

    def save(self, limit: int, into: Path) -> Path:
        """Write the body to a new file below `into`.

        `limit` is the maximum number of bytes, both as sent and after decompression. Raises RequestError if the status
        brings no whole file, if the body is empty, too large, truncated, longer than its Content-Length or in an
        unsupported encoding, and if the disk is full. After an error no file is left.
        """
        if self.status not in _WHOLE:
            raise self.refused()
        path: Path | None = None
        try:
            with tempfile.NamedTemporaryFile(dir=into, prefix="download-", delete=False) as file:
                path = Path(file.name)
                for piece in self._pieces(limit):
                    if file.tell() + len(piece) > limit:
                        raise self._too_large(limit)
                    file.write(piece)
                file.flush()
                if not file.tell():
                    raise RequestError(
                        f"{self.url.host} sent an empty file", hint="check that it was uploaded", code="download_empty"
                    )
        except BaseException as error:
            if path is not None:
                path.unlink()
            if isinstance(error, OSError):
                raise RequestError(
                    f"the download cannot be stored: {error.strerror or error}",
                    hint="free the disk of temporary files (TMPDIR)",
                    code="download_unwritable",
                ) from error
            raise
        return path

    def refused(self) -> RequestError:
        """Return the error for a status that brings no file."""
        # The server's own reason phrase could repeat the query.
        standard = self.status in HTTPStatus.__members__.values()
        phrase = f" {HTTPStatus(self.status).phrase}" if standard else ""
        hints = {
            401: "make the file public or use a presigned URL",
            403: "make the file public or use a presigned URL that has not expired",
            404: "check the path",
        }
        return RequestError(
            f"{self.url.host} answered {self.status}{phrase}",
            hint=hints.get(self.status, "the URL must point to the file itself"),
            code="download_status",
        )

    def _pieces(self, limit: int) -> Iterator[bytes]:
        encoding = self.header("Content-Encoding").lower()
        transfer = self.header("Transfer-Encoding").lower()
        if encoding not in ("", "identity", "gzip", "x-gzip") or transfer not in ("", "chunked"):
            raise RequestError(
                f"{self.url.host} sends the file in an unsupported encoding",
                hint="serve it without Content-Encoding, or with gzip",
                code="download_encoding",
            )
        body = self._body(limit)
        return self._decompressed(body) if encoding.endswith("gzip") else body

    def _body(self, limit: int) -> Iterator[bytes]:
        """Yield the body as it was sent, still compressed if it is."""
        content_length = None if self.header("Transfer-Encoding") else self._content_length()
        if content_length is not None and content_length > limit:
            raise self._too_large(limit)
        buffer = bytearray(_STEP)
        total = 0
        while True:
            with _as_request_error(self.url):
                count = self._response.readinto(buffer)
            if not count:
                break
            total += count
            if total > limit:
                raise self._too_large(limit)
            yield bytes(buffer[:count])
        if content_length is not None and total < content_length:
            raise _cut_short(self.url)
        # A server that announced the end of the connection has one second to close it, and must send nothing more.
        if content_length and self._response.will_close and self._wire.has_more(seconds=1):
            raise RequestError(
                f"{self.url.host} sent more than the {content_length} bytes of its Content-Length",
                hint="fix the server",
                code="download_length",
            )

    def _content_length(self) -> int | None:
        """Return the Content-Length, None if there is none. http.client ignores an invalid one. Raises RequestError."""
        values = {value.strip() for value in self._response.headers.get_all("Content-Length") or ()}
        if not values:
            return None
        value = values.pop()
        if values or not re.fullmatch(r"[0-9]{1,18}", value):
            raise RequestError(
                f"{self.url.host} sends an invalid Content-Length",
                hint="fix the server",
                code="download_length",
            )
        return int(value)

    def _decompressed(self, body: Iterator[bytes]) -> Iterator[bytes]:
        """Yield the decompressed body in pieces of bounded size, whatever its compression ratio."""
        gzip = zlib.MAX_WBITS | 16
        member, started = zlib.decompressobj(gzip), False
        for compressed in body:
            rest = compressed
            while rest:
                if member.eof:
                    member = zlib.decompressobj(gzip)
                started = True
                try:
                    yield member.decompress(rest, _STEP)
                except zlib.error as error:
                    raise RequestError(
                        f"{self.url.host} sends invalid gzip data",
                        hint="serve the file without Content-Encoding",
                        code="download_encoding",
                    ) from error
                rest = member.unused_data if member.eof else member.unconsumed_tail
        if started and not member.eof:
            raise _cut_short(self.url)

    def _too_large(self, limit: int) -> RequestError:
        return RequestError(
            f"the file of {self.url.host} has more than {limit} bytes",
            hint="send a smaller file",
            code="download_too_large",
        )


@contextmanager
def ask(url: Url, access: Access, *, deadline: float, resolve: Resolver = look_up) -> Iterator[Answer]:
    """Send a GET for `url` and yield the answer, whatever its status; the caller follows redirects.

    Raises RequestError, and Cancelled within a second after `access.cancel` is set.

    It uses http.client, which logs nothing, follows no redirect, reads no proxy from the environment and puts no URL
    into an error: a presigned URL is a secret.
    """
    wire = connect(url, deadline=deadline, private_hosts=access.private_hosts, resolve=resolve, cancel=access.cancel)
    connection = http.client.HTTPConnection(url.host, url.port)
    connection.sock = wire
    headers = {
        "Host": url.authority,
        "User-Agent": "multitalk-engine",
        "Accept": "*/*",
        "Accept-Encoding": "identity",
        "Connection": "close",
    }
    try:
        with _as_request_error(url):
            connection.request("GET", url.target, headers=headers)
            response = connection.getresponse()
        yield Answer(url, wire, response)
    finally:
        wire.hang_up()


@contextmanager
def _as_request_error(url: Url) -> Iterator[None]:
    """Raise network errors as RequestError."""
    try:
        yield
    except TimeoutError as error:
        raise timed_out(url) from error
    except OSError as error:
        raise connection_failed(url, error) from error
    except http.client.IncompleteRead:
        raise _cut_short(url) from None
    except http.client.HTTPException:
        # Its message quotes the server, which could repeat the query.
        raise RequestError(
            f"{url.host} port {url.port} does not answer with HTTP",
            hint="check scheme and port",
            code="download_malformed",
        ) from None


def _cut_short(url: Url) -> RequestError:
    return RequestError(
        f"the file of {url.host} ends too early",
        hint="check that the file on the server is complete",
        code="download_truncated",
    )
