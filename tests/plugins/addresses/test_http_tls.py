"""https addresses: the certificate is verified for the name, and nothing falls back to http."""

from __future__ import annotations

import datetime
import socket
import ssl
from dataclasses import replace
from pathlib import Path

import pytest
from downloads import ACCESS, CONTENT, HASTY, QUERY, Refused, always, moved
from loopback import reply, serving

from plugins.addresses.http import fetch_url

FETCH = fetch_url


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


def test_redirect_from_https_to_http_is_refused(
    refused: Refused, tls: ssl.SSLContext, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with serving(reply(CONTENT)) as target, serving(moved(target.url()), context=tls) as server:
        url = server.url(QUERY, host="media.example", scheme="https")
        refused(url, "redirect_refused", TLS_ACCESS, always("127.0.0.1"))
    assert target.requests == []


def test_slow_tls_handshake_counts(refused: Refused) -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    with listening:
        refused(f"https://127.0.0.1:{listening.getsockname()[1]}{QUERY}", "download_timeout", HASTY)
