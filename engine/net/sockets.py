"""Sockets whose calls end at a deadline or at a cancellation."""

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
    """A connected socket with the methods that http.client needs; its calls end at the deadline or when cancelled.

    A socket's own timeout restarts with every byte, so a server that sends single bytes could block forever.
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
        """Receive bytes into `buffer` and return their number, 0 at the end. Raises TimeoutError and Cancelled."""
        return in_steps(self._socket, self._deadline, self._cancel, lambda: self._socket.recv_into(buffer))

    def makefile(self, mode: str) -> io.BufferedReader:
        """Return the only reader of this socket."""
        return self._reader

    def has_more(self, seconds: float) -> bool:
        """Return whether bytes other than line ends arrive within `seconds`, before the other side closes."""
        self._deadline = min(self._deadline, time.monotonic() + seconds)
        try:
            return bool(self._reader.peek(1).strip(b"\r\n"))
        except OSError:
            return False

    def close(self) -> None:
        """Do nothing: http.client closes as soon as it has read the headers of the last answer. See `hang_up`."""

    def hang_up(self) -> None:
        """Close the socket."""
        self._socket.close()


class _Reader(io.BufferedReader):
    def close(self) -> None:
        # http.client closes it after the last byte; `Wire.has_more` reads further.
        pass


class _Raw(io.RawIOBase):
    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        return self._wire.receive(buffer)


def seconds_left(deadline: float) -> float:
    """Return the seconds left until `deadline`. Raises TimeoutError if there are none."""
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise TimeoutError("the deadline has passed")
    return seconds


def in_steps(connected: socket.socket, deadline: float, cancel: CancelToken | None, call: Callable[[], T]) -> T:
    """Repeat a socket's call until it succeeds, checking `cancel` in between, and return its result.

    Raises TimeoutError after the deadline, and Cancelled. A call that timed out can be repeated: nothing was sent or
    received, and TLS keeps its partial state.
    """
    while True:
        check(cancel, "read")
        seconds = seconds_left(deadline)
        connected.settimeout(seconds if cancel is None else min(seconds, LOOK))
        try:
            return call()
        except TimeoutError:
            # Of the deadline or only of this step: `seconds_left` decides.
            continue


def connect_address(address: str, port: int, deadline: float, cancel: CancelToken | None) -> socket.socket:
    """Connect to a numeric address. Raises OSError, including TimeoutError, and Cancelled."""
    family, kind, protocol, _, place = socket.getaddrinfo(
        address, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
    )[0]
    connected = socket.socket(family, kind, protocol)
    try:
        connected.setblocking(False)
        status = connected.connect_ex(place)
        if status not in (0, errno.EINPROGRESS, errno.EAGAIN):
            raise OSError(status, os.strerror(status))
        ready = select.poll()
        ready.register(connected, select.POLLOUT)
        while True:
            check(cancel, "read")
            seconds = seconds_left(deadline)
            if ready.poll(1000 * (seconds if cancel is None else min(seconds, LOOK))):
                break
        status = connected.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if status:
            raise OSError(status, os.strerror(status))
        connected.settimeout(seconds_left(deadline))
    except BaseException:
        connected.close()
        raise
    return connected
