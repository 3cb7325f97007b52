"""What the tests of addresses share: who may be reached, what must not be told, and a few servers."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from dataclasses import replace

from loopback import reply

from engine import Access
from engine.errors import RequestError

CONTENT = b"\x89PNG " + bytes(range(256)) * 1000
SECRET = "s3cr3tsentinel"
QUERY = f"/a.png?X-Amz-Signature={SECRET}"
#: Loopback stands in for the public internet.
ACCESS = Access(schemes=("http", "https"), private_hosts=("127.0.0.1",), max_bytes=1_000_000, timeout=60)
STRICT = replace(ACCESS, private_hosts=())
HASTY = replace(ACCESS, timeout=0.3)

#: A call that must fail, as the fixture `refused` returns it.
Refused = Callable[..., RequestError]


def always(*addresses: str) -> Callable[[str, int], Sequence[str]]:
    return lambda host, port: addresses


def moved(location: str, status: str = "302 Found") -> bytes:
    return reply(b"", f"Location: {location}", status=status)


def hold(connection: socket.socket) -> None:
    """Say nothing until the other side hangs up."""
    connection.recv(1)
