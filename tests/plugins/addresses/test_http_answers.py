"""http(s) addresses: an answer that is not a whole, plain file is refused in our own words."""

from __future__ import annotations

import gzip
import os
import socket
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest
from downloads import ACCESS, CONTENT, QUERY, SECRET, Refused
from loopback import reply, serving

from plugins.addresses.http import fetch_url

FETCH = fetch_url


@pytest.mark.parametrize(
    "status", [f"404 no {SECRET} here", "403 Forbidden", "401 x", "500 x", "204 x", "206 x", "304 x", "599 x", "999 x"]
)
def test_status_without_a_file_is_told_in_our_own_words(status: str, refused: Refused) -> None:
    with serving(reply(CONTENT, f"X-Echo: {SECRET}", status=status)) as server:
        assert f"answered {status[:3]}" in str(refused(server.url(QUERY), "download_status"))


@pytest.mark.parametrize(
    "answer",
    [
        f"220 mail.example ESMTP {SECRET}\r\n".encode(),
        b"\x00" * 1000,
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200,
        b"HTTP/1.1 200 " + b"x" * 70_000,
    ],
)
def test_what_does_not_speak_http_is_told(answer: bytes, refused: Refused) -> None:
    with serving(answer) as server:
        refused(server.url(QUERY), "download_malformed")


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (reply(b""), "download_empty"),
        (reply(b"", length=None), "download_empty"),
        (reply(b"0\r\n\r\n", "Transfer-Encoding: chunked", length=None), "download_empty"),
        (reply(gzip.compress(b""), "Content-Encoding: gzip"), "download_empty"),
        (reply(b"", "Content-Encoding: gzip"), "download_empty"),
        (reply(CONTENT, length=len(CONTENT) + 1), "download_truncated"),
        (reply(b"", length=1), "download_truncated"),
        (reply(b"5\r\nhel", "Transfer-Encoding: chunked", length=None), "download_truncated"),
        (reply(b"5\r\nhello\r\n", "Transfer-Encoding: chunked", length=None), "download_truncated"),
        (reply(b"5\r\nhello\r\nzz\r\n", "Transfer-Encoding: chunked", length=None), "download_truncated"),
        (reply(CONTENT, length=len(CONTENT) - 1), "download_length"),
        (reply(CONTENT, "Content-Length: 5"), "download_length"),
        (reply(CONTENT, "Content-Length: -5", length=None), "download_length"),
        (reply(CONTENT, "Content-Length: many", length=None), "download_length"),
        (reply(CONTENT, "Content-Length: " + "9" * 5000, length=None), "download_length"),
    ],
)
def test_body_that_is_not_what_was_announced_is_refused(answer: bytes, code: str, refused: Refused) -> None:
    with serving(answer) as server:
        refused(server.url(QUERY), code)


def test_line_end_behind_the_body_is_forgiven(into: Path) -> None:
    with serving(reply(CONTENT, length=len(CONTENT)) + b"\r\n") as server:
        assert fetch_url(server.url(), ACCESS, into).read_bytes() == CONTENT


def test_connection_reset_within_the_body_is_told(refused: Refused) -> None:
    def reset(connection: socket.socket) -> None:
        connection.sendall(reply(b"x" * 10, length=10_000))
        # Linger of 0 seconds: close sends a reset.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    with serving(reset) as server:
        refused(server.url(QUERY), "address_unreachable")


@pytest.mark.parametrize("name", ["gzip", "x-gzip", "GZIP"])
def test_gzip_that_was_not_asked_for_is_undone(name: str, into: Path) -> None:
    packed = gzip.compress(CONTENT[:1000]) + gzip.compress(CONTENT[1000:])
    with serving(reply(packed, f"Content-Encoding: {name}")) as server:
        assert fetch_url(server.url(), ACCESS, into).read_bytes() == CONTENT


def test_gzip_of_noise_survives_the_steps_of_unpacking(into: Path) -> None:
    noise = os.urandom(300_000)
    with serving(reply(gzip.compress(noise), "Content-Encoding: gzip")) as server:
        assert fetch_url(server.url(), ACCESS, into).read_bytes() == noise


def test_gzip_may_not_unpack_beyond_the_limit(refused: Refused) -> None:
    bomb = gzip.compress(bytes(20_000_000))
    assert len(bomb) < ACCESS.max_bytes / 10
    with serving(reply(bomb, "Content-Encoding: gzip")) as server:
        tracemalloc.start()
        refused(server.url(QUERY), "download_too_large")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 5_000_000


def test_members_of_gzip_that_hold_nothing_end_at_the_limit(refused: Refused) -> None:
    with serving(reply(gzip.compress(b"") * 1000, "Content-Encoding: gzip", length=None)) as server:
        refused(server.url(QUERY), "download_too_large", replace(ACCESS, max_bytes=1000))


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (gzip.compress(CONTENT)[:-1], "download_truncated"),
        (gzip.compress(CONTENT)[:100], "download_truncated"),
        (CONTENT, "download_encoding"),
        (gzip.compress(CONTENT) + b"more", "download_encoding"),
        (gzip.compress(CONTENT)[:-8] + bytes(8), "download_encoding"),
    ],
    # Packed bytes hold the time: as names they would be other ones in each of pytest's processes.
    ids=["without its last byte", "cut", "not packed", "more behind it", "wrong sum"],
)
def test_gzip_that_is_not_sound_is_refused(body: bytes, code: str, refused: Refused) -> None:
    with serving(reply(body, "Content-Encoding: gzip")) as server:
        refused(server.url(QUERY), code)


@pytest.mark.parametrize(
    "header",
    [
        "Content-Encoding: br",
        "Content-Encoding: gzip, gzip",
        "Content-Encoding: gzip\r\nContent-Encoding: br",
        f"Content-Encoding: {SECRET}",
        "Transfer-Encoding: gzip, chunked",
    ],
)
def test_other_encodings_are_refused(header: str, refused: Refused) -> None:
    with serving(reply(CONTENT, header)) as server:
        refused(server.url(QUERY), "download_encoding")
