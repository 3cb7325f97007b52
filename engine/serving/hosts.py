"""Host names: one spelling, and whether other machines can reach a server that listens there."""

from __future__ import annotations

import ipaddress
import socket


def normalise_host(host: str) -> str:
    """Return a host in one spelling: lower case, no brackets, no dot at the end."""
    name = host.strip().lower().removesuffix(".")
    return name[1:-1] if name.startswith("[") and name.endswith("]") else name


def is_address(host: str) -> bool:
    """Return whether `host` is an IP address, not a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Return whether a server that listens on `host` can be reached only from this machine."""
    name = normalise_host(host)
    if is_address(name):
        return ipaddress.ip_address(name).is_loopback
    try:
        addresses = {str(info[4][0]) for info in socket.getaddrinfo(name, None)} if name else set()
    except OSError:
        return False
    return bool(addresses) and all(ipaddress.ip_address(address.partition("%")[0]).is_loopback for address in addresses)
