"""Connections to public addresses, and to other hosts only if they are allowed by name."""

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
from engine.net.sockets import Wire, connect_address, in_steps, seconds_left

#: (host, port) -> the numeric addresses of the host.
Resolver = Callable[[str, int], Sequence[str]]

_PORTS = {"http": 80, "https": 443}
#: Maximum characters of a URL; presigned URLs have about 2000.
_LONGEST = 8192

# `is_global` alone accepts some of these in some releases of Python 3.11 to 3.14.
_NOT_PUBLIC = tuple(
    ipaddress.ip_network(network)
    for network in (
        "100.64.0.0/10",  # carriers' own networks; one cloud has its metadata service there
        "168.63.129.16/32",  # Azure's host, from inside a virtual machine
        "192.0.0.0/24",  # protocol assignments; one cloud has its metadata service there
        "192.88.99.0/24",  # relays into 6to4
        "2001::/23",  # protocol assignments, including Teredo
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4: contains any IPv4 address
        "3fff::/20",  # documentation
    )
)
#: All global unicast addresses of IPv6. Outside it are loopback, link local, site local, unique local and multicast
#: addresses, and those that contain an IPv4 address (::/96, ::ffff:0:0/96, 64:ff9b::/96).
_UNICAST = ipaddress.ip_network("2000::/3")


@dataclass(frozen=True)
class Url:
    """A parsed and valid http or https URL. Its repr shows no path and no query."""

    scheme: str
    #: ASCII in lower case; IPv6 without brackets.
    host: str
    port: int
    #: Path and query, percent-encoded.
    target: str = field(repr=False)

    @property
    def authority(self) -> str:
        """Return host and port as in the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


def parse_url(address: str) -> Url:
    """Parse a http or https URL. Raises RequestError; no message shows more of the URL than its scheme."""
    # urlsplit removes tabs and line ends silently.
    if len(address) > _LONGEST or any(ord(character) < 32 or ord(character) == 127 for character in address):
        raise _invalid(f"it is longer than {_LONGEST} characters or contains control characters")
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError:
        # The library's message may quote a part of the URL, here and below: none is chained.
        raise _invalid("its host or port cannot be read") from None
    if parts.scheme not in _PORTS:
        raise RequestError(
            "the URL is neither http nor https", hint="write https://host/folder/file", code="scheme_refused"
        )
    if "@" in parts.netloc:
        raise RequestError(
            "the URL contains a user name or a password",
            hint="remove the part before the @; a presigned URL grants access to one file",
            code="credentials_in_url",
        )
    host = _host(parts.hostname or "", bracketed="[" in parts.netloc)
    if port == 0:
        raise _invalid("port 0 cannot be reached")
    try:
        target = quote(parts.path or "/", safe="/%:;=@!$&'()*+,~")
        if parts.query:
            target += "?" + quote(parts.query, safe="/%?:;=@!$&'()*+,~")
    except UnicodeError:
        raise _invalid("it contains characters that cannot be encoded as UTF-8") from None
    return Url(parts.scheme, host, port or _PORTS[parts.scheme], target)


def is_public(address: str) -> bool:
    """Return whether a numeric address is a unicast address on the public internet."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    if parsed.version == 6 and parsed not in _UNICAST:
        return False
    if any(parsed in network for network in _NOT_PUBLIC):
        return False
    return parsed.is_global and not (parsed.is_multicast or parsed.is_reserved)


def look_up(host: str, port: int) -> list[str]:
    """Return the numeric addresses of a host, from the system's resolver. Raises OSError."""
    # The resolver also reads the numeric forms of IPv4 (2130706433, 0177.0.0.1, 0x7f.1, 127.1), so the address that
    # they stand for is checked.
    results = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in results))


def connect(
    url: Url,
    *,
    deadline: float,
    private_hosts: Collection[str] = (),
    resolve: Resolver = look_up,
    cancel: CancelToken | None = None,
) -> Wire:
    """Connect to the host of `url` as `dial` does, with TLS for https. Raises RequestError and Cancelled.

    The certificate must be valid for the host's name. No proxy is used, because it would resolve the name itself.
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
        raise connection_failed(url, error) from error
    try:
        in_steps(secured, deadline, cancel, secured.do_handshake)
        return Wire(secured, deadline, cancel)
    except Cancelled:
        secured.close()
        raise
    except TimeoutError as error:
        secured.close()
        raise timed_out(url) from error
    except ssl.SSLCertVerificationError as error:
        secured.close()
        raise RequestError(
            f"the certificate of {url.host} is not valid: {error.verify_message}",
            hint="use the name that the certificate is for, and a certificate of a known authority",
            code="certificate_refused",
        ) from error
    except OSError as error:
        secured.close()
        raise connection_failed(url, error) from error


def dial(
    url: Url,
    *,
    deadline: float,
    private_hosts: Collection[str] = (),
    resolve: Resolver = look_up,
    cancel: CancelToken | None = None,
) -> socket.socket:
    """Connect a plain socket to the host of `url` before `deadline` (on the clock of `time.monotonic`).

    The name is resolved once, each of its addresses is checked, and only these addresses are connected to: a name
    whose addresses change in between (DNS rebinding) gains nothing. Hosts in `private_hosts`, spelled as `url.host`,
    may have any address. Raises RequestError, and Cancelled shortly after `cancel` is set.
    """
    try:
        return _connect_first(url, _checked_addresses(url, deadline, private_hosts, resolve, cancel), deadline, cancel)
    except TimeoutError as error:
        raise timed_out(url) from error


def judge(url: Url, *, deadline: float, private_hosts: Collection[str] = (), resolve: Resolver = look_up) -> None:
    """Raise RequestError if `dial` would reject the host of `url`; connect to nothing."""
    try:
        _checked_addresses(url, deadline, private_hosts, resolve)
    except TimeoutError as error:
        raise timed_out(url) from error


def timed_out(url: Url) -> RequestError:
    """Return the error for a deadline that has passed."""
    return RequestError(
        f"{url.host} took longer than the allowed time",
        hint="use a faster server or a smaller file",
        code="download_timeout",
    )


def connection_failed(url: Url, error: OSError) -> RequestError:
    """Return the error for a connection that cannot be made or is lost."""
    reason = getattr(error, "reason", None) or error.strerror or type(error).__name__
    return RequestError(
        f"the connection to {url.host} port {url.port} failed: {reason}",
        hint="check that the server runs and can be reached from the internet",
        code="address_unreachable",
    )


def _invalid(why: str) -> RequestError:
    return RequestError(f"the URL is invalid: {why}", hint="write https://host/folder/file", code="address_invalid")


def _host(name: str, *, bracketed: bool) -> str:
    if bracketed:
        try:
            address = ipaddress.IPv6Address(name)
        except ValueError:
            raise _invalid("its IPv6 address cannot be read") from None
        if address.scope_id is not None:
            raise _invalid("its IPv6 address names a network interface of this machine")
        return str(address)
    try:
        host = name.encode("idna").decode("ascii").lower().removesuffix(".")
    except UnicodeError:
        raise _invalid("its host name cannot be read") from None
    if not re.fullmatch(r"[a-z0-9_.-]+", host):
        raise _invalid("it has no host name" if not host else "its host name cannot be read")
    return host


def _checked_addresses(
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
            hint="other addresses are not allowed; use a public server, or send the file as a data: URL",
            code="address_private",
        )
    return addresses


def _resolved(url: Url, deadline: float, resolve: Resolver, cancel: CancelToken | None) -> Sequence[str]:
    """Return the addresses of the host. Raises TimeoutError: the system's resolver has no deadline of its own."""
    answer: Future[Sequence[str]] = Future()

    def ask() -> None:
        try:
            answer.set_result(resolve(url.host, url.port))
        except Exception as error:  # noqa: BLE001 - the thread that waits for the answer raises it
            answer.set_exception(error)

    threading.Thread(target=ask, name="multitalk-look-up", daemon=True).start()
    unknown = RequestError(
        f"no address is known for the host {url.host}", hint="check its spelling", code="address_unknown"
    )
    try:
        while not answer.done():
            check(cancel, "read")
            seconds = seconds_left(deadline)
            wait([answer], timeout=seconds if cancel is None else min(seconds, LOOK))
        addresses = answer.result()
    except TimeoutError:
        raise
    except (OSError, UnicodeError) as error:
        raise unknown from error
    if not addresses:
        raise unknown
    return addresses


def _connect_first(url: Url, addresses: Sequence[str], deadline: float, cancel: CancelToken | None) -> socket.socket:
    """Connect to the first address that answers. Raises RequestError, TimeoutError and Cancelled."""
    last_error = OSError("no address")
    for index, address in enumerate(addresses):
        # Every address gets its share of the time: this machine may have no route for the first one's protocol.
        share = seconds_left(deadline) / (len(addresses) - index)
        try:
            return connect_address(address, url.port, time.monotonic() + share, cancel)
        except OSError as error:
            last_error = error
    if isinstance(last_error, TimeoutError):
        raise last_error
    raise connection_failed(url, last_error) from last_error
