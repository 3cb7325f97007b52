"""Sockets of which no call outlasts a deadline or a withdrawal."""

from __future__ import annotations

import errno
import io
import os
import select
import socket
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from engine.cancel import LOOK, check
from engine.data.cancel import CancelToken

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

T = TypeVar("T")


class Wire:
    """A connected socket, as far as http.client needs one, of which no call outlasts the deadline or a withdrawal.

    A socket's own timeout starts anew with every byte, so a server that trickles could hold on for ever.
    """

    def __init__(self, connected: socket.socket, deadline: float, cancel: CancelToken | None = None) -> None:
        self._socket = connected
        self._deadline = deadline
        self._cancel = cancel
        self._reader = _Reader(_Raw(self))

    def sendall(self, data: bytes) -> None:
        """Send all of `data`. Raises TimeoutError and Cancelled."""
        rest = memoryview(data)
        while rest:
            rest = rest[in_steps(self._socket, self._deadline, self._cancel, partial(self._socket.send, rest)) :]

    def receive(self, buffer: WriteableBuffer) -> int:
        """Receive what is there into `buffer`; 0 at the end. Raises TimeoutError and Cancelled."""
        return in_steps(self._socket, self._deadline, self._cancel, lambda: self._socket.recv_into(buffer))

    def makefile(self, mode: str) -> io.BufferedReader:
        """Return the one reader of this wire."""
        return self._reader

    def has_more(self, seconds: float) -> bool:
        """Say whether something else than line ends arrives before the other side hangs up, or within `seconds`."""
        self._deadline = min(self._deadline, time.monotonic() + seconds)
        try:
            return bool(self._reader.peek(1).strip(b"\r\n"))
        except OSError:
            return False

    def close(self) -> None:
        """Do nothing: http.client closes as soon as it has read the headers of a last answer. See `hang_up`."""

    def hang_up(self) -> None:
        """Close the socket."""
        self._socket.close()


class _Reader(io.BufferedReader):
    def close(self) -> None:
        # http.client closes it behind the last byte; `Wire.has_more` looks behind that.
        pass


class _Raw(io.RawIOBase):
    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        return self._wire.receive(buffer)


def left(deadline: float) -> float:
    """Return the seconds left until `deadline`. Raises TimeoutError if there are none."""
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise TimeoutError("the time allowed is over")
    return seconds


def in_steps(connected: socket.socket, deadline: float, cancel: CancelToken | None, call: Callable[[], T]) -> T:
    """Do a call of a socket until it succeeds, with a look at `cancel` in between.

    Raises TimeoutError behind the deadline, and Cancelled. A call that timed out may be done again: nothing was sent or
    received, and TLS keeps what it has so far.
    """
    while True:
        check(cancel, "read")
        seconds = left(deadline)
        connected.settimeout(seconds if cancel is None else min(seconds, LOOK))
        try:
            return call()
        except TimeoutError:
            # Of its own, or of a step: the time that is left tells.
            continue


def reach(address: str, port: int, deadline: float, cancel: CancelToken | None) -> socket.socket:
    """Connect to a numeric address. Raises OSError, TimeoutError among them, and Cancelled."""
    family, kind, protocol, _, place = socket.getaddrinfo(
        address, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
    )[0]
    connected = socket.socket(family, kind, protocol)
    try:
        connected.setblocking(False)
        begun = connected.connect_ex(place)
        if begun not in (0, errno.EINPROGRESS, errno.EAGAIN):
            raise OSError(begun, os.strerror(begun))
        ready = select.poll()
        ready.register(connected, select.POLLOUT)
        while True:
            check(cancel, "read")
            seconds = left(deadline)
            if ready.poll(1000 * (seconds if cancel is None else min(seconds, LOOK))):
                break
        failed = connected.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if failed:
            raise OSError(failed, os.strerror(failed))
        connected.settimeout(left(deadline))
    except BaseException:
        connected.close()
        raise
    return connected
