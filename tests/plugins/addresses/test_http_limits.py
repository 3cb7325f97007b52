"""http(s) addresses: size and time end a download."""

from __future__ import annotations

import socket
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from downloads import ACCESS, CONTENT, HASTY, QUERY, Refused, hold
from loopback import Script, reply, serving, trickle

from plugins.addresses.http import fetch_url

FETCH = fetch_url


def stall(connection: socket.socket) -> None:
    """Say something and then nothing more."""
    connection.sendall(reply(b"x", length=10_000))
    hold(connection)


def test_file_of_exactly_the_limit_is_taken(into: Path) -> None:
    with serving(reply(CONTENT)) as server:
        access = replace(ACCESS, max_bytes=len(CONTENT))
        assert fetch_url(server.url(), access, into).read_bytes() == CONTENT


@pytest.mark.parametrize("length", [-1, None])
def test_file_beyond_the_limit_is_refused(length: int | None, refused: Refused) -> None:
    with serving(reply(CONTENT, length=length)) as server:
        access = replace(ACCESS, max_bytes=len(CONTENT) - 1)
        assert str(len(CONTENT) - 1) in str(refused(server.url(QUERY), "download_too_large", access))


def test_announced_size_beyond_the_limit_is_refused_at_once(refused: Refused) -> None:
    with serving(trickle(reply(b"x", length=10**12), b"x")) as server:
        refused(server.url(QUERY), "download_too_large")


def test_endless_body_is_refused_at_the_limit(refused: Refused) -> None:
    def endless(connection: socket.socket) -> None:
        connection.sendall(reply(length=None))
        while True:
            connection.sendall(bytes(100_000))

    with serving(endless) as server:
        refused(server.url(QUERY), "download_too_large")


@pytest.mark.parametrize(
    "script",
    [
        hold,
        trickle(b"", b"H"),
        trickle(b"HTTP/1.1 200 OK\r\nX: ", b"y"),
        trickle(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n"),
        trickle(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        trickle(reply(b"x", length=10_000), b"x"),
        trickle(reply(length=None), b"x"),
        trickle(reply(b"", "Transfer-Encoding: chunked", length=None), b"1\r\nx\r\n"),
        trickle(reply(b"", "Content-Encoding: gzip", length=None) + b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03", b"\0"),
        stall,
    ],
    ids=["silence", "status", "header", "headers", "continue", "body", "unsized", "chunks", "gzip", "stall"],
)
def test_slow_server_is_left_when_the_time_is_over(script: Script, refused: Refused) -> None:
    with serving(script) as server:
        begun = time.monotonic()
        error = refused(server.url(QUERY), "download_timeout", HASTY)
    # It would take minutes otherwise; other work on the machine may delay the last look at the clock.
    assert time.monotonic() - begun < HASTY.timeout + 20, error


def test_slow_resolver_counts(refused: Refused) -> None:
    done = threading.Event()

    def slow(host: str, port: int) -> list[str]:
        done.wait(10)
        return ["8.8.8.8"]

    refused(f"http://media.example{QUERY}", "download_timeout", HASTY, slow)
    done.set()
