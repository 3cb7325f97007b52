"""http and https URLs on the public internet."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urljoin, urlsplit

from engine import Access, hookimpl
from engine.errors import RequestError
from engine.net.download import ask, deadline_of
from engine.net.guard import Resolver, Url, look_up, parse_url

#: Maximum number of redirects.
REDIRECTS = 5
_MOVED = (301, 302, 303, 307, 308)


def fetch_url(address: str, access: Access, into: Path, *, resolve: Resolver = look_up) -> Path:
    """Download a URL to a new file in `into`, within the limits of `access`; they include redirects.

    Every redirect is checked like the first address. Raises RequestError, and then leaves no file.
    """
    deadline = deadline_of(access)
    url = parse_url(address)
    for _ in range(REDIRECTS + 1):
        with ask(url, access, deadline=deadline, resolve=resolve) as answer:
            if answer.status not in _MOVED:
                return answer.save(access.max_bytes, into)
            url = _next(url, answer.header("Location"), access)
    raise _refused(url, f"is one of more than {REDIRECTS}")


def _next(url: Url, location: str, access: Access) -> Url:
    if not location:
        raise _refused(url, "has no target")
    try:
        address = urljoin(f"{url.scheme}://{url.authority}{url.target}", location)
        scheme = urlsplit(address).scheme
    except ValueError:
        # Not chained: the original message may contain the address.
        raise _refused(url, "leads to an invalid URL") from None
    if scheme not in ("http", "https") or scheme not in access.schemes:
        raise _refused(url, "leads to a scheme that is not allowed")
    if (url.scheme, scheme) == ("https", "http"):
        raise _refused(url, "leads from https to http")
    return parse_url(address)


def _refused(url: Url, why: str) -> RequestError:
    return RequestError(
        f"the redirect of {url.host} {why}", hint="give the URL of the file itself", code="redirect_refused"
    )


@hookimpl
def open_address(address: str, scheme: str, access: Access, into: Path) -> Path | None:
    """Download an http or https URL to a file in `into`."""
    return fetch_url(address, access, into) if scheme in ("http", "https") else None
