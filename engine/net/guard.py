"""Connections to public addresses, and to no others but those that are allowed by name."""

from __future__ import annotations

import ipaddress
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from urllib.parse import quote, urlsplit

from engine.cancel import LOOK, check
from engine.data.cancel import CancelToken
from engine.errors import Cancelled, RequestError
from engine.net.sockets import Wire, in_steps, left, reach

#: (host, port) -> the numeric addresses of the host.
Resolver = Callable[[str, int], Sequence[str]]

_PORTS = {"http": 80, "https": 443}
#: Longer URLs are refused; presigned ones have about 2000 letters.
_LONGEST = 8192

# `is_global` alone lets some of these through in one or another release of Python 3.11 to 3.14.
_NOT_PUBLIC = tuple(
    ipaddress.ip_network(network)
    for network in (
        "100.64.0.0/10",  # carriers' own networks; a cloud keeps its metadata there
        "168.63.129.16/32",  # Azure's host, from inside a virtual machine
        "192.0.0.0/24",  # protocol assignments; a cloud keeps its metadata there
        "192.88.99.0/24",  # relays into 6to4
        "2001::/23",  # protocol assignments, Teredo among them
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4: any IPv4 address in another guise
        "3fff::/20",  # documentation
    )
)
#: All global unicast of IPv6. Outside lie loopback, link and site local, unique local, multicast, and the guises of
#: IPv4 addresses (::/96, ::ffff:0:0/96, 64:ff9b::/96).
_UNICAST = ipaddress.ip_network("2000::/3")


@dataclass(frozen=True)
class Url:
    """A http or https URL, taken apart and found sound. Its repr shows no path and no query."""

    scheme: str
    #: Small ASCII letters; IPv6 without brackets.
    host: str
    port: int
    #: Path and query, percent signs in place.
    target: str = field(repr=False)

    @property
    def authority(self) -> str:
        """Return host and port as the Host header has them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


def parse_url(address: str) -> Url:
    """Take a http or https URL apart. Raises RequestError; no message shows more of the URL than its scheme."""
    # urlsplit drops tabs and line ends without a word.
    if len(address) > _LONGEST or any(ord(letter) < 32 or ord(letter) == 127 for letter in address):
        raise _unsound(f"it is longer than {_LONGEST} letters or holds control characters")
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError:
        # The foreign message may quote a part of the URL, and so may those below: none is chained.
        raise _unsound("its host or port cannot be read") from None
    if parts.scheme not in _PORTS:
        raise RequestError(
            "the URL is neither http nor https", hint="write https://host/folder/file", code="scheme_refused"
        )
    if "@" in parts.netloc:
        raise RequestError(
            "the URL holds a user name or a password",
            hint="leave out what stands before the @; a presigned URL grants access to one file",
            code="credentials_in_url",
        )
    host = _host(parts.hostname or "", bracketed="[" in parts.netloc)
    if port == 0:
        raise _unsound("port 0 cannot be reached")
    try:
        target = quote(parts.path or "/", safe="/%:;=@!$&'()*+,~")
        if parts.query:
            target += "?" + quote(parts.query, safe="/%?:;=@!$&'()*+,~")
    except UnicodeError:
        raise _unsound("it holds letters that are not UTF-8") from None
    return Url(parts.scheme, host, port or _PORTS[parts.scheme], target)


def is_public(address: str) -> bool:
    """Say whether a numeric address is one of the public internet's, for one receiver."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    if found.version == 6 and found not in _UNICAST:
        return False
    if any(found in network for network in _NOT_PUBLIC):
        return False
    return found.is_global and not (found.is_multicast or found.is_reserved)


def look_up(host: str, port: int) -> list[str]:
    """Ask the system's resolver. Raises OSError."""
    # The resolver also reads the numeric forms of IPv4 (2130706433, 0177.0.0.1, 0x7f.1, 127.1), so they are judged by
    # the address they mean.
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))


def connect(
    url: Url,
    *,
    deadline: float,
    private_hosts: Collection[str] = (),
    resolve: Resolver = look_up,
    cancel: CancelToken | None = None,
) -> Wire:
    """Connect to the host of `url` as `dial` does, with TLS for https. Raises RequestError and Cancelled.

    The certificate is verified for the name. No proxy is used: it would resolve the name itself.
    """
    plain = dial(url, deadline=deadline, private_hosts=private_hosts, resolve=resolve, cancel=cancel)
    if url.scheme == "http":
        return Wire(plain, deadline, cancel)
    try:
        context = ssl.create_default_context()
        context.set_alpn_protocols(["http/1.1"])
        secured = context.wrap_socket(plain, server_hostname=url.host, do_handshake_on_connect=False)
    except OSError as error:
        plain.close()
        raise cut_off(url, error) from error
    try:
        in_steps(secured, deadline, cancel, secured.do_handshake)
        return Wire(secured, deadline, cancel)
    except Cancelled:
        secured.close()
        raise
    except TimeoutError as error:
        secured.close()
        raise late(url) from error
    except ssl.SSLCertVerificationError as error:
        secured.close()
        raise RequestError(
            f"the certificate of {url.host} is not valid: {error.verify_message}",
            hint="use the name that the certificate is for, and a certificate of a known authority",
            code="certificate_refused",
        ) from error
    except OSError as error:
        secured.close()
        raise cut_off(url, error) from error


def dial(
    url: Url,
    *,
    deadline: float,
    private_hosts: Collection[str] = (),
    resolve: Resolver = look_up,
    cancel: CancelToken | None = None,
) -> socket.socket:
    """Connect a plain socket to the host of `url` before `deadline` (on the clock of `time.monotonic`).

    The name is resolved once, every address found is judged, and one of exactly those is connected to, so that a name
    which changes its mind in between (DNS rebinding) gains nothing. Hosts in `private_hosts`, spelled as `url.host`,
    may lie anywhere. Raises RequestError, and Cancelled within a moment once `cancel` is set.
    """
    try:
        return _first(url, _judged(url, deadline, private_hosts, resolve, cancel), deadline, cancel)
    except TimeoutError as error:
        raise late(url) from error


def judge(url: Url, *, deadline: float, private_hosts: Collection[str] = (), resolve: Resolver = look_up) -> None:
    """Raise RequestError where `dial` would refuse the host of `url`; connect to nothing."""
    try:
        _judged(url, deadline, private_hosts, resolve)
    except TimeoutError as error:
        raise late(url) from error


def late(url: Url) -> RequestError:
    """Return the error for time that is over."""
    return RequestError(
        f"{url.host} took longer than the time allowed",
        hint="use a faster server or a smaller file",
        code="download_timeout",
    )


def cut_off(url: Url, error: OSError) -> RequestError:
    """Return the error for a connection that cannot be made or breaks."""
    reason = getattr(error, "reason", None) or error.strerror or type(error).__name__
    return RequestError(
        f"the connection to {url.host} port {url.port} failed: {reason}",
        hint="check that the server runs and can be reached from the internet",
        code="address_unreachable",
    )


def _unsound(why: str) -> RequestError:
    return RequestError(f"the URL is not sound: {why}", hint="write https://host/folder/file", code="address_invalid")


def _host(given: str, *, bracketed: bool) -> str:
    if bracketed:
        try:
            address = ipaddress.IPv6Address(given)
        except ValueError:
            raise _unsound("its IPv6 address cannot be read") from None
        if address.scope_id is not None:
            raise _unsound("its IPv6 address names a network card of this machine")
        return str(address)
    try:
        host = given.encode("idna").decode("ascii").lower().removesuffix(".")
    except UnicodeError:
        raise _unsound("its host name cannot be read") from None
    if not re.fullmatch(r"[a-z0-9_.-]+", host):
        raise _unsound("it has no host name" if not host else "its host name cannot be read")
    return host


def _judged(
    url: Url,
    deadline: float,
    private_hosts: Collection[str],
    resolve: Resolver,
    cancel: CancelToken | None = None,
) -> Sequence[str]:
    addresses = _resolved(url, deadline, resolve, cancel)
    if url.host not in private_hosts and not all(map(is_public, addresses)):
        raise RequestError(
            f"{url.host} is not on the public internet",
            hint="nothing else is reached from here; use a public server, or send a file as a data: URL",
            code="address_private",
        )
    return addresses


def _resolved(url: Url, deadline: float, resolve: Resolver, cancel: CancelToken | None) -> Sequence[str]:
    """Return the addresses of the host. Raises TimeoutError: the system's resolver knows no deadline of its own."""
    answer: Future[Sequence[str]] = Future()

    def ask() -> None:
        try:
            answer.set_result(resolve(url.host, url.port))
        except Exception as error:  # noqa: BLE001 - it is raised where the answer is waited for
            answer.set_exception(error)

    threading.Thread(target=ask, name="multitalk-look-up", daemon=True).start()
    unknown = RequestError(
        f"no address is known for the host {url.host}", hint="check its spelling", code="address_unknown"
    )
    try:
        while not answer.done():
            check(cancel, "read")
            seconds = left(deadline)
            wait([answer], timeout=seconds if cancel is None else min(seconds, LOOK))
        addresses = answer.result()
    except TimeoutError:
        raise
    except (OSError, UnicodeError) as error:
        raise unknown from error
    if not addresses:
        raise unknown
    return addresses


def _first(url: Url, addresses: Sequence[str], deadline: float, cancel: CancelToken | None) -> socket.socket:
    """Connect to the first address that answers. Raises TimeoutError and Cancelled."""
    failed = OSError("no address")
    for index, address in enumerate(addresses):
        # Every address has its share of the time: the first may be of a protocol that has no way out from here.
        share = left(deadline) / (len(addresses) - index)
        try:
            return reach(address, url.port, time.monotonic() + share, cancel)
        except OSError as error:
            failed = error
    if isinstance(failed, TimeoutError):
        raise failed
    raise cut_off(url, failed) from failed
