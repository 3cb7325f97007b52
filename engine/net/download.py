"""What a URL answers -> a local file, within the limits of an Access."""

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
from engine.net.guard import Resolver, Url, connect, cut_off, late, look_up
from engine.net.sockets import Wire

#: Bytes read, and bytes unpacked, at a time.
_STEP = 2**16
#: Statuses whose body is the whole file.
_WHOLE = (200, 203)


def deadline_of(access: Access) -> float:
    """Return when a download that begins now must be over, on the clock of `time.monotonic`."""
    own = time.monotonic() + access.timeout
    return own if access.until is None else min(own, access.until)


class Answer:
    """What a server answered: status and headers; the body is still on the wire."""

    def __init__(self, url: Url, wire: Wire, response: http.client.HTTPResponse) -> None:
        self.url = url
        self.status = response.status
        self._wire = wire
        self._response = response

    def header(self, name: str) -> str:
        """Return a header's value, "" if it is absent. A server chose it: it belongs in no message."""
        return ", ".join(value.strip() for value in self._response.headers.get_all(name) or ())

    def beginning(self, size: int) -> bytes:
        """Return the first `size` bytes of the body as they were sent. Raises RequestError."""
        buffer = bytearray(size)
        with _told(self.url):
            return bytes(buffer[: self._response.readinto(buffer)])

    def save(self, limit: int, into: Path) -> Path:
        """Write the body to a new file below `into`.

        `limit` is the most bytes as sent and as unpacked. Raises RequestError for a status that brings no whole file,
        for a body that is empty, too large, cut short, longer than announced or encoded in an unknown way, and for a
        disk that takes no more; no file is left then.
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
                    f"the download cannot be kept: {error.strerror or error}",
                    hint="free the disk of temporary files (TMPDIR)",
                    code="download_unwritable",
                ) from error
            raise
        return path

    def refused(self) -> RequestError:
        """Return the error for a status that is not a file's."""
        # The server's own words could repeat the query.
        known = self.status in HTTPStatus.__members__.values()
        phrase = f" {HTTPStatus(self.status).phrase}" if known else ""
        hints = {
            401: "make the file public or use a presigned URL",
            403: "make the file public or use a presigned URL that has not run out",
            404: "check the path",
        }
        return RequestError(
            f"{self.url.host} answered {self.status}{phrase}",
            hint=hints.get(self.status, "the URL must lead to the file itself"),
            code="download_status",
        )

    def _pieces(self, limit: int) -> Iterator[bytes]:
        encoding = self.header("Content-Encoding").lower()
        transfer = self.header("Transfer-Encoding").lower()
        if encoding not in ("", "identity", "gzip", "x-gzip") or transfer not in ("", "chunked"):
            raise RequestError(
                f"{self.url.host} sends the file in an encoding that was not asked for",
                hint="serve it without Content-Encoding, or with gzip",
                code="download_encoding",
            )
        sent = self._sent(limit)
        return self._unpacked(sent) if encoding.endswith("gzip") else sent

    def _sent(self, limit: int) -> Iterator[bytes]:
        """Yield the body as it was sent."""
        announced = None if self.header("Transfer-Encoding") else self._announced()
        if announced is not None and announced > limit:
            raise self._too_large(limit)
        buffer = bytearray(_STEP)
        total = 0
        while True:
            with _told(self.url):
                count = self._response.readinto(buffer)
            if not count:
                break
            total += count
            if total > limit:
                raise self._too_large(limit)
            yield bytes(buffer[:count])
        if announced is not None and total < announced:
            raise _cut_short(self.url)
        # A server that said it would close has nothing more to send; one second for it to do so.
        if announced and self._response.will_close and self._wire.has_more(seconds=1):
            raise RequestError(
                f"{self.url.host} sent more than the {announced} bytes it announced",
                hint="mend the Content-Length that the server sends",
                code="download_length",
            )

    def _announced(self) -> int | None:
        """Return the Content-Length; http.client takes one that makes no sense for none."""
        values = {value.strip() for value in self._response.headers.get_all("Content-Length") or ()}
        if not values:
            return None
        value = values.pop()
        if values or not re.fullmatch(r"[0-9]{1,18}", value):
            raise RequestError(
                f"{self.url.host} sends a Content-Length that makes no sense",
                hint="mend the Content-Length that the server sends",
                code="download_length",
            )
        return int(value)

    def _unpacked(self, sent: Iterator[bytes]) -> Iterator[bytes]:
        """Undo gzip, a bounded piece at a time, however well the bytes are packed."""
        gzip = zlib.MAX_WBITS | 16
        member, begun = zlib.decompressobj(gzip), False
        for packed in sent:
            rest = packed
            while rest:
                if member.eof:
                    member = zlib.decompressobj(gzip)
                begun = True
                try:
                    yield member.decompress(rest, _STEP)
                except zlib.error as error:
                    raise RequestError(
                        f"{self.url.host} sends what is not sound gzip",
                        hint="serve the file without Content-Encoding",
                        code="download_encoding",
                    ) from error
                rest = member.unused_data if member.eof else member.unconsumed_tail
        if begun and not member.eof:
            raise _cut_short(self.url)

    def _too_large(self, limit: int) -> RequestError:
        return RequestError(
            f"the file of {self.url.host} has more than {limit} bytes",
            hint="send a smaller file",
            code="download_too_large",
        )


@contextmanager
def ask(url: Url, access: Access, *, deadline: float, resolve: Resolver = look_up) -> Iterator[Answer]:
    """Send a GET for `url` and give the answer, whatever its status; redirects are the caller's.

    Raises RequestError, and Cancelled within a second once `access.cancel` is set.

    http.client, because it logs nothing, follows nothing, reads no proxy from the environment and puts no URL into an
    error: a presigned URL is a secret.
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
        with _told(url):
            connection.request("GET", url.target, headers=headers)
            response = connection.getresponse()
        yield Answer(url, wire, response)
    finally:
        wire.hang_up()


@contextmanager
def _told(url: Url) -> Iterator[None]:
    """Tell what goes wrong on the wire as a RequestError."""
    try:
        yield
    except TimeoutError as error:
        raise late(url) from error
    except OSError as error:
        raise cut_off(url, error) from error
    except http.client.IncompleteRead:
        raise _cut_short(url) from None
    except http.client.HTTPException:
        # Its message quotes the server, which could repeat the query.
        raise RequestError(
            f"{url.host} port {url.port} does not answer in HTTP",
            hint="check scheme and port",
            code="download_malformed",
        ) from None


def _cut_short(url: Url) -> RequestError:
    return RequestError(
        f"the file of {url.host} ends too early", hint="check that the server has all of it", code="download_truncated"
    )
