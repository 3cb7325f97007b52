"""http(s) addresses: each redirect is judged like the first address."""

from __future__ import annotations

import socket
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from downloads import ACCESS, CONTENT, HASTY, QUERY, SECRET, Refused, moved
from loopback import reply, serving

from plugins.addresses.http import REDIRECTS, fetch_url

FETCH = fetch_url


@pytest.mark.parametrize(
    "status", ["301 Moved", "302 Found", "303 See Other", "307 Temporary Redirect", "308 Permanent Redirect"]
)
def test_redirect_is_followed(status: str, into: Path) -> None:
    with serving(moved("../b.png?token=2", status), reply(CONTENT)) as server:
        assert fetch_url(server.url("/x/y/a.png"), ACCESS, into).read_bytes() == CONTENT
    assert server.requests[1].startswith("GET /x/b.png?token=2 ")


def test_redirect_to_another_host_names_that_host(into: Path) -> None:
    with serving(reply(CONTENT)) as target, serving(moved(target.url("/b"))) as server:
        fetch_url(server.url(), ACCESS, into)
    assert f"Host: 127.0.0.1:{target.port}\r\n" in target.requests[0]


@pytest.mark.parametrize(
    ("location", "code"),
    [
        ("http://127.1:{port}/", "address_private"),
        ("http://169.254.169.254/latest/meta-data/", "address_private"),
        ("//[::1]:{port}/", "address_private"),
        (f"http://user:{SECRET}@127.0.0.1:{{port}}/", "credentials_in_url"),
        ("file:///etc/passwd", "redirect_refused"),
        ("ftp://127.0.0.1/a", "redirect_refused"),
        ("s3://bucket/key", "redirect_refused"),
        ("data:image/png;base64,aaaa", "redirect_refused"),
        ("http://[::1", "redirect_refused"),
        ("", "redirect_refused"),
        ("http://127.0.0.1:99999/", "address_invalid"),
    ],
)
def test_redirect_is_judged_like_the_first_address(location: str, code: str, refused: Refused) -> None:
    def script(connection: socket.socket) -> None:
        connection.sendall(moved(location.format(port=connection.getsockname()[1])))

    with serving(script) as server:
        refused(server.url(QUERY), code)
    assert len(server.requests) == 1


def test_redirects_end(refused: Refused) -> None:
    with serving(moved(QUERY)) as server:
        refused(server.url(QUERY), "redirect_refused")
    assert len(server.requests) == REDIRECTS + 1


def test_redirect_to_a_scheme_the_request_may_not_use_is_refused(refused: Refused) -> None:
    with serving(moved("https://127.0.0.1/")) as server:
        refused(server.url(QUERY), "redirect_refused", replace(ACCESS, schemes=("http",)))


def test_redirects_share_the_time(refused: Refused) -> None:
    def late(connection: socket.socket) -> None:
        threading.Event().wait(0.12)
        connection.sendall(moved(QUERY))

    with serving(late) as server:
        refused(server.url(QUERY), "download_timeout", HASTY)
    assert len(server.requests) <= 4
