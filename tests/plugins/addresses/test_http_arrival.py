"""http(s) addresses: what is sent whole arrives whole, and nothing stays of what does not."""

from __future__ import annotations

import io
import signal
import socket
import threading
import time
import wave
from pathlib import Path

import pytest
from downloads import ACCESS, CONTENT, QUERY, hold
from loopback import reply, serving
from PIL import Image

from engine import Request, Speaker
from engine.errors import RequestError
from engine.stages.read import fetch
from plugins.addresses.http import fetch_url, open_address


class _Stop(BaseException):
    pass


def test_file_arrives_whole_below_the_folder(into: Path) -> None:
    with serving(reply(CONTENT)) as server:
        path = open_address(address=server.url(QUERY), scheme="http", access=ACCESS, into=into)

    assert path is not None
    assert path.parent == into
    assert path.read_bytes() == CONTENT
    assert server.requests[0].startswith(f"GET {QUERY} HTTP/1.1\r\n")
    assert f"Host: 127.0.0.1:{server.port}\r\n" in server.requests[0]
    assert "Accept-Encoding: identity\r\n" in server.requests[0]


def test_other_schemes_are_passed_on(into: Path) -> None:
    assert open_address(address="s3://b/k", scheme="s3", access=ACCESS, into=into) is None


def test_body_without_length_ends_with_the_connection(into: Path) -> None:
    with serving(reply(CONTENT, length=None)) as server:
        assert fetch_url(server.url(), ACCESS, into).read_bytes() == CONTENT


def test_chunked_body_is_put_together(into: Path) -> None:
    chunks = b"5\r\nhello\r\n7;x=y\r\n, world\r\n0\r\n\r\n"
    with serving(reply(chunks, "Transfer-Encoding: chunked", length=None)) as server:
        assert fetch_url(server.url(), ACCESS, into).read_bytes() == b"hello, world"


def test_letters_of_any_script_in_a_path_are_quoted(into: Path) -> None:
    with serving(reply(CONTENT)) as server:
        fetch_url(server.url("/Bücher und mehr%20.png?a=ü&b=%2F#part"), ACCESS, into)

    assert server.requests[0].startswith("GET /B%C3%BCcher%20und%20mehr%20.png?a=%C3%BC&b=%2F HTTP/1.1\r\n")


def test_proxies_of_the_environment_are_not_used(into: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(reply(b"proxy")) as proxy, serving(reply(CONTENT)) as server:
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, proxy.url())
            monkeypatch.setenv(name.upper(), proxy.url())
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)

        assert fetch_url(server.url(), ACCESS, into).read_bytes() == CONTENT
    assert proxy.requests == []


def test_file_is_told_by_its_content_and_not_by_its_name_or_type(into: Path) -> None:
    picture, voice = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (96, 64)).save(picture, "PNG")
    with wave.open(voice, "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(bytes(16_000))
    answers = (reply(content.getvalue(), "Content-Type: text/html") for content in (picture, voice))
    with serving(*answers) as server:
        asked = Request("a person talks", server.url("/a.wav"), (Speaker(server.url("/b.exe")),))
        media = fetch(asked, open_address, ACCESS, into)

    assert media.image_size == (96, 64)
    assert media.seconds == (0.5,)


def test_folder_that_takes_no_file_is_told(tmp_path: Path) -> None:
    with serving(reply(CONTENT)) as server, pytest.raises(RequestError) as told:
        fetch_url(server.url(), ACCESS, tmp_path / "gone")
    assert told.value.code == "download_unwritable"


def test_interrupt_leaves_no_file(into: Path) -> None:
    def interrupt(connection: socket.socket) -> None:
        connection.sendall(reply(bytes(200_000), length=300_000))
        while not any(path.stat().st_size for path in into.iterdir()):
            time.sleep(0.01)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGALRM)
        hold(connection)

    def stop(*_: object) -> None:
        raise _Stop

    before = signal.signal(signal.SIGALRM, stop)
    try:
        with serving(interrupt) as server, pytest.raises(_Stop):
            fetch_url(server.url(), ACCESS, into)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert list(into.iterdir()) == []
