"""http(s) addresses: what is downloaded is whole, public and within its limits, and failures give no secret away."""

from __future__ import annotations

import datetime
import gzip
import io
import logging
import os
import signal
import socket
import ssl
import threading
import time
import traceback
import tracemalloc
import wave
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from loopback import Script, reply, serving, trickle
from PIL import Image

from engine import Access, Request, Speaker
from engine.errors import RequestError
from engine.network import is_public, look_up, parse_url
from engine.stages.read import fetch
from plugins.addresses.http import REDIRECTS, fetch_url, open_address

CONTENT = b"\x89PNG " + bytes(range(256)) * 1000
SECRET = "s3cr3tsentinel"
QUERY = f"/a.png?X-Amz-Signature={SECRET}"
#: Loopback stands in for the public internet.
ACCESS = Access(schemes=("http", "https"), private_hosts=("127.0.0.1",), max_bytes=1_000_000, timeout=60)
STRICT = replace(ACCESS, private_hosts=())
HASTY = replace(ACCESS, timeout=0.3)


@pytest.fixture(autouse=True)
def _all_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)


@pytest.fixture
def into(tmp_path: Path) -> Path:
    folder = tmp_path / "into"
    folder.mkdir()
    return folder


@pytest.fixture
def refused(into: Path, caplog: pytest.LogCaptureFixture) -> Callable[..., RequestError]:
    """Return a call that must fail with a code and a hint, give nothing secret away and leave no file."""

    def call(
        address: str, code: str, access: Access = ACCESS, resolve: Callable[..., Sequence[str]] = look_up
    ) -> RequestError:
        with pytest.raises(RequestError) as told:
            fetch_url(address, access, into, resolve=resolve)
        error = told.value
        assert error.code == code, error
        assert error.hint
        assert list(into.iterdir()) == []
        assert SECRET not in "".join(traceback.format_exception(error)) + caplog.text
        return error

    return call


Refused = Callable[..., RequestError]


def always(*addresses: str) -> Callable[[str, int], Sequence[str]]:
    return lambda host, port: addresses


# --- what arrives -----------------------------------------------------------------------------------------------------


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


# --- where it may come from -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "2130706433", "0177.0.0.1", "0x7f000001", "0x7f.1", "127.1", "127.0.0.1.", "localhost", "0"),
        *("0.0.0.0", "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::127.0.0.1]"),
    ],
)
def test_no_spelling_of_this_machine_is_fetched(host: str, refused: Refused) -> None:
    with serving(reply(CONTENT)) as server:
        refused(server.url(QUERY, host=host), "address_private", STRICT)
    assert server.requests == []


@pytest.mark.parametrize(
    "address",
    [
        *("10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "100.100.100.200", "192.0.0.192"),
        *("168.63.129.16", "198.18.0.1", "192.88.99.1", "203.0.113.1", "224.0.1.1", "240.0.0.1", "255.255.255.255"),
        *("fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "fec0::1", "ff02::1", "ff0e::1", "2001:db8::1"),
        *("64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "::ffff:10.0.0.1", "::ffff:8.8.8.8"),
        *("2002:7f00:1::", "2001::1", "3fff::1", "100::1", "name.example", ""),
    ],
)
def test_only_the_public_internet_counts_as_public(address: str, refused: Refused) -> None:
    assert not is_public(address)
    refused(f"http://media.example{QUERY}", "address_private", STRICT, always(address))


@pytest.mark.parametrize("address", ["8.8.8.8", "93.184.216.34", "2606:4700:4700::1111", "2001:4860:4860::8888"])
def test_public_addresses_are_public(address: str) -> None:
    assert is_public(address)


def test_name_with_one_private_address_is_refused_as_a_whole(refused: Refused) -> None:
    refused(f"http://media.example{QUERY}", "address_private", STRICT, always("8.8.8.8", "10.0.0.1"))


def test_message_does_not_say_where_a_name_leads(refused: Refused) -> None:
    error = refused("http://intern.example/", "address_private", STRICT, always("10.11.12.13"))

    assert "intern.example" in str(error)
    assert "10.11.12.13" not in str(error)


def test_the_address_that_was_judged_is_the_one_connected_to(into: Path) -> None:
    asked: list[str] = []

    def rebinding(host: str, port: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"] if len(asked) == 1 else ["127.0.0.2"]

    access = replace(ACCESS, private_hosts=("media.example",))
    with serving(reply(CONTENT)) as server:
        path = fetch_url(server.url(QUERY, host="Media.Example"), access, into, resolve=rebinding)

    assert path.read_bytes() == CONTENT
    assert asked == ["media.example"]
    assert f"Host: media.example:{server.port}\r\n" in server.requests[0]


def test_a_name_is_allowed_only_as_it_is_spelled(refused: Refused) -> None:
    with serving(reply(CONTENT)) as server:
        refused(server.url(QUERY, host="127.1"), "address_private", ACCESS)
        refused(server.url(QUERY, host="[::ffff:127.0.0.1]"), "address_private", ACCESS)
    assert server.requests == []


def test_an_address_that_does_not_answer_gives_way_to_the_next(into: Path) -> None:
    access = replace(ACCESS, private_hosts=("media.example",))
    with serving(reply(CONTENT)) as server:
        # Nothing listens at 127.0.0.2.
        url = server.url(host="media.example")
        path = fetch_url(url, access, into, resolve=always("127.0.0.2", "127.0.0.1"))
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("user", ["user:s3cr3tsentinel@", "s3cr3tsentinel@", "@", "127.0.0.1\\@"])
def test_user_and_password_in_a_url_are_refused(user: str, refused: Refused) -> None:
    refused(f"http://{user}127.0.0.1/", "credentials_in_url")


@pytest.mark.parametrize(
    "url",
    [
        *("http:///a", "http://?x", "http://[::1/", "http://[v1.x]/", "http://[fe80::1%25eth0]/"),
        *("http://a b/", "http://a..b/", "http://a:99999/", "http://a:0/", "http://a:x/", "http://ex\u2100mple/"),
        *("http://a/\r\nHost: b", "http://a/\x00", "http://a/\ud800", "http://a/?\udfff", "http://" + "a" * 9000),
    ],
)
def test_what_is_no_url_is_refused(url: str, refused: Refused) -> None:
    refused(url + SECRET, "address_invalid")


def test_url_shows_no_query_in_its_repr() -> None:
    assert SECRET not in repr(parse_url(f"https://media.example{QUERY}"))


def test_unknown_host_is_told(refused: Refused) -> None:
    def unknown(host: str, port: int) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    assert "media.example" in str(refused(f"http://media.example{QUERY}", "address_unknown", ACCESS, unknown))


def test_closed_port_is_told(refused: Refused) -> None:
    with serving(reply(CONTENT)) as server:
        pass
    assert str(server.port) in str(refused(server.url(QUERY), "address_unreachable"))


# --- TLS --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PEM file: key and certificate of media.example, signed by itself."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "media.example")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("media.example")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "media.pem"
    plain = serialization.NoEncryption()
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
        + signed.public_bytes(serialization.Encoding.PEM)
    )
    return path


@pytest.fixture
def tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


TLS_ACCESS = replace(ACCESS, private_hosts=("media.example", "other.example", "127.0.0.1"))


def test_certificate_is_asked_for_and_verified_by_name(
    into: Path, tls: ssl.SSLContext, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[str] = []
    tls.sni_callback = lambda connection, name, context: names.append(name)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with serving(reply(CONTENT), context=tls) as server:
        url = server.url(QUERY, host="media.example", scheme="https")
        assert fetch_url(url, TLS_ACCESS, into, resolve=always("127.0.0.1")).read_bytes() == CONTENT
    assert names == ["media.example"]


def test_certificate_of_another_name_is_refused(
    refused: Refused, tls: ssl.SSLContext, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with serving(reply(CONTENT), context=tls) as server:
        url = server.url(QUERY, host="other.example", scheme="https")
        refused(url, "certificate_refused", TLS_ACCESS, always("127.0.0.1"))
    assert server.requests == []


def test_certificate_of_no_known_authority_is_refused(refused: Refused, tls: ssl.SSLContext) -> None:
    with serving(reply(CONTENT), context=tls) as server:
        url = server.url(QUERY, host="media.example", scheme="https")
        refused(url, "certificate_refused", TLS_ACCESS, always("127.0.0.1"))
    assert server.requests == []


def test_https_to_a_port_that_speaks_http_is_told(refused: Refused) -> None:
    with serving(reply(CONTENT)) as server:
        refused(server.url(QUERY, scheme="https"), "address_unreachable")


# --- redirects --------------------------------------------------------------------------------------------------------


def moved(location: str, status: str = "302 Found") -> bytes:
    return reply(b"", f"Location: {location}", status=status)


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


def test_redirect_from_https_to_http_is_refused(
    refused: Refused, tls: ssl.SSLContext, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with serving(reply(CONTENT)) as target, serving(moved(target.url()), context=tls) as server:
        url = server.url(QUERY, host="media.example", scheme="https")
        refused(url, "redirect_refused", TLS_ACCESS, always("127.0.0.1"))
    assert target.requests == []


def test_redirect_to_a_scheme_the_request_may_not_use_is_refused(refused: Refused) -> None:
    with serving(moved("https://127.0.0.1/")) as server:
        refused(server.url(QUERY), "redirect_refused", replace(ACCESS, schemes=("http",)))


# --- statuses ---------------------------------------------------------------------------------------------------------


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


# --- limits -----------------------------------------------------------------------------------------------------------


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


def hold(connection: socket.socket) -> None:
    """Say nothing until the other side hangs up."""
    connection.recv(1)


def stall(connection: socket.socket) -> None:
    """Say something and then nothing more."""
    connection.sendall(reply(b"x", length=10_000))
    hold(connection)


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


def test_slow_tls_handshake_counts(refused: Refused) -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    with listening:
        refused(f"https://127.0.0.1:{listening.getsockname()[1]}{QUERY}", "download_timeout", HASTY)


def test_slow_resolver_counts(refused: Refused) -> None:
    done = threading.Event()

    def slow(host: str, port: int) -> list[str]:
        done.wait(10)
        return ["8.8.8.8"]

    refused(f"http://media.example{QUERY}", "download_timeout", HASTY, slow)
    done.set()


def test_redirects_share_the_time(refused: Refused) -> None:
    def late(connection: socket.socket) -> None:
        threading.Event().wait(0.12)
        connection.sendall(moved(QUERY))

    with serving(late) as server:
        refused(server.url(QUERY), "download_timeout", HASTY)
    assert len(server.requests) <= 4


# --- bodies -----------------------------------------------------------------------------------------------------------


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


# --- encodings --------------------------------------------------------------------------------------------------------


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


# --- the disk ---------------------------------------------------------------------------------------------------------


def test_folder_that_takes_no_file_is_told(tmp_path: Path) -> None:
    with serving(reply(CONTENT)) as server, pytest.raises(RequestError) as told:
        fetch_url(server.url(), ACCESS, tmp_path / "gone")
    assert told.value.code == "download_unwritable"


class _Stop(BaseException):
    pass


def test_interrupt_leaves_no_file(into: Path) -> None:
    def interrupt(connection: socket.socket) -> None:
        connection.sendall(reply(bytes(200_000), length=300_000))
        while not list(into.iterdir()):
            time.sleep(0.01)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGALRM)
        hold(connection)

    def stop(*_: object) -> None:
        raise _Stop

    before = signal.signal(signal.SIGALRM, stop)
    with serving(interrupt) as server, pytest.raises(_Stop):
        fetch_url(server.url(), ACCESS, into)
    signal.signal(signal.SIGALRM, before)
    assert list(into.iterdir()) == []
