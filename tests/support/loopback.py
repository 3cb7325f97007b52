"""A server on loopback that says, byte for byte, what a test tells it."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

#: Bytes to send, or what to do with the connection.
Script = bytes | Callable[[socket.socket], None]


class Server:
    """Gives its answers in order, the last one again and again, and keeps the requests it was sent."""

    def __init__(self, answers: tuple[Script, ...], context: ssl.SSLContext | None, host: str) -> None:
        self.requests: list[str] = []
        self._answers = answers
        self._context = context
        self._listening = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        self.port = self._listening.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def url(self, path: str = "/", *, host: str = "127.0.0.1", scheme: str = "http") -> str:
        """Return the URL of a path on this server."""
        return f"{scheme}://{host}:{self.port}{path}"

    def close(self) -> None:
        """Stop taking connections."""
        # Closing alone would not wake the thread that waits in accept.
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join(timeout=5)
        assert not self._thread.is_alive()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            # The client may hang up at any time: that is what many tests are about.
            with connection, suppress(OSError):
                if self._context is not None:
                    connection = self._context.wrap_socket(connection, server_side=True)
                with connection:
                    self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        request = b""
        # 22 opens a TLS handshake, which this port does not speak.
        while b"\r\n\r\n" not in request and not request.startswith(b"\x16"):
            received = connection.recv(4096)
            if not received:
                return
            request += received
        self.requests.append(request.decode("latin-1"))
        script = self._answers[min(len(self.requests), len(self._answers)) - 1]
        if callable(script):
            script(connection)
        else:
            connection.sendall(script)


@contextmanager
def serving(*answers: Script, context: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> Iterator[Server]:
    """Run a server while the block runs."""
    server = Server(answers, context, host)
    try:
        yield server
    finally:
        server.close()


def reply(body: bytes = b"", *headers: str, status: str = "200 OK", length: int | None = -1) -> bytes:
    """Return an answer in HTTP; `length` is the Content-Length it claims: -1 the true one, None no such header."""
    lines = [f"HTTP/1.1 {status}", *headers, "Connection: close"]
    if length is not None:
        lines.append(f"Content-Length: {len(body) if length == -1 else length}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def trickle(beginning: bytes, drop: bytes) -> Callable[[socket.socket], None]:
    """Return a script that sends `beginning` and then `drop` twenty times a second, for ever."""

    def script(connection: socket.socket) -> None:
        connection.sendall(beginning)
        pause = threading.Event()
        while not pause.wait(0.05):
            connection.sendall(drop)

    return script
