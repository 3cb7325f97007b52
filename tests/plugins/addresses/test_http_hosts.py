"""http(s) addresses lead to the public internet alone, however they are written."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path

import pytest
from downloads import ACCESS, CONTENT, QUERY, SECRET, STRICT, Refused, always
from loopback import reply, serving

from engine.net.guard import is_public, parse_url
from plugins.addresses.http import fetch_url

FETCH = fetch_url


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
