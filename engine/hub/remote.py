"""The hub: what it says of a file, and the file's bytes, going on where an earlier run ended.

`hf_hub_download` starts a file from its beginning in every process (docs/decisions/010-own-part-files.md), so its parts
are used: the library's request for metadata and its streaming with ranges, around a file of ours.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from engine.errors import SourceError
from engine.hub.manifest import COMMIT, File

#: Seconds to wait after the first failure in a row, the second, ...; after the last one the download is given up.
#: Any byte that arrives begins the row anew.
WAITS = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0, 60.0)
_SHA256 = re.compile(r"[0-9a-f]{64}")
#: The only hashes that are taken from a hub: git's SHA-1 of a small file, the SHA-256 of a large one.
_ETAG = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
#: Bytes of the largest file there is: more than any disk has.
_MOST = 2**63
#: What another attempt cannot mend: of the disk, not of the network.
_LOCAL = frozenset(
    (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ENOENT, errno.ENOTDIR)
)


@dataclass(frozen=True)
class Stated:
    """What the hub says of a file."""

    commit: str
    size: int
    #: SHA-256 of a large file; of a small one the SHA-1 that git gives it.
    etag: str
    url: str
    #: Whether `url` is the hub's own, which may see the token.
    own: bool

    @property
    def sha256(self) -> str:
        """Return the file's SHA-256, "" where the hub states another hash."""
        return self.etag if _SHA256.fullmatch(self.etag) else ""


class Unreachable(SourceError):
    """The hub does not answer, or not with sense."""


def ask(file: File, revision: str) -> Stated:
    """Ask the hub about `file` at `revision`.

    Nothing of an answer is taken as it comes: the hash, commit, size and address have to look like ones. Raises
    SourceError where it refuses, states nonsense or states another file, and Unreachable.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError

    endpoint = os.environ.get("HF_ENDPOINT")
    url = hf_hub_url(file.repository, file.path, revision=revision, endpoint=endpoint)
    try:
        found = get_hf_file_metadata(url, endpoint=endpoint, retry_on_errors=True)
    except ValueError:
        # What follows is the library's reading of an answer: of an address that is none, for one.
        raise SourceError(
            f"the hub's answer for {file.path} of {file.repository} makes no sense", field="download"
        ) from None
    except _transient() as error:
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else 0
        if status in (401, 403, 404):
            raise SourceError(
                f"the hub answers {status} for {file.path} of {file.repository} at {revision}",
                field="download",
                hint="set HF_TOKEN to a token that may read it" if status != 404 else "the manifest has to be mended",
            ) from None
        raise Unreachable(
            f"the hub says nothing of {file.path} of {file.repository} ({_reason(error)})",
            field="download",
            hint="start again later, or see what HF_ENDPOINT and the proxy are",
        ) from None
    size, etag = _sensible(file, found)
    stated = Stated(
        commit=found.commit_hash or revision,
        size=size,
        etag=etag,
        url=found.location,
        # With its scheme: a token is not sent in the clear because an answer says so.
        own=urlsplit(found.location)[:2] == urlsplit(url)[:2],
    )
    for what, known, told in (
        ("size", file.size if file.exact else None, stated.size),
        ("SHA-256", file.sha256 or None, stated.sha256 or None),
        ("commit", revision if COMMIT.fullmatch(revision) else None, stated.commit),
    ):
        if known is not None and told is not None and known != told:
            raise SourceError(
                f"the hub offers another file as {file.path} of {file.repository}: {what} {told} in place of {known}",
                field="download",
                hint="is HF_ENDPOINT a mirror that is not to be trusted?",
            )
    return stated


def _sensible(file: File, found: Any) -> tuple[int, str]:
    """Return size and hash that the hub states of `file`; raise SourceError unless all is of the kind hubs state."""
    if found.size is None or found.etag is None:
        raise SourceError(f"the hub states no size and hash of {file.key}", field="download")
    try:
        scheme = urlsplit(found.location).scheme
    except ValueError:
        scheme = ""
    for what, is_sound in (
        ("a hash that is neither a SHA-256 nor git's SHA-1", _ETAG.fullmatch(found.etag)),
        ("a size that is none", 0 <= found.size < _MOST),
        ("a commit that is none", not found.commit_hash or COMMIT.fullmatch(found.commit_hash)),
        ("an address that is neither http nor https", scheme in ("http", "https")),
    ):
        if not is_sound:
            # What it states is not repeated: it may be written for whoever reads the message, or for their terminal.
            raise SourceError(
                f"the hub states {what} for {file.path} of {file.repository}",
                field="download",
                hint="is HF_ENDPOINT a mirror that is not to be trusted?",
            )
    return found.size, found.etag


def fetch(
    file: File,
    stated: Stated,
    part: Path,
    *,
    waits: Sequence[float] = WAITS,
    pause: Callable[[float], None],
) -> Stated:
    """Bring `part` to the full size of `file`, going on from the bytes it has.

    Args:
        part: belongs to this content alone; whoever calls holds the folder's lock.
        pause: waits for so many seconds, and raises where the work is to stop.

    Returns:
        What the hub stated last. Raises SourceError after as many failures in a row as `waits` has entries.
    """
    failures = 0
    while True:
        before = _size(part)
        if before > stated.size:
            part.unlink()
            before = 0
        if before == stated.size and part.exists():
            return stated
        pause(0)
        try:
            _stream(file, stated, part, before, pause)
            continue
        except _transient() as error:
            if isinstance(error, OSError) and error.errno in _LOCAL:
                raise
            failures = 1 if _size(part) > before else failures + 1
            reason, wait = _reason(error), waits[min(failures, len(waits)) - 1] if waits else 0
            if failures > len(waits):
                raise SourceError(
                    f"{file.path} of {file.repository} does not arrive ({reason}), {_size(part)} of {stated.size} bytes"
                    " are there",
                    field="download",
                    hint="start again later: it goes on from there",
                ) from None
        pause(wait)
        # Addresses of a content network expire.
        stated = _ask_again(file, stated)


def _stream(file: File, stated: Stated, part: Path, have: int, pause: Callable[[float], None]) -> None:
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # in its __all__, made at run time

    def check(arrived: int) -> None:
        pause(0)
        if arrived > stated.size:
            raise SourceError(
                f"more arrives as {file.path} of {file.repository} than the {stated.size} bytes that the hub states",
                field="download",
                hint="is HF_ENDPOINT a mirror that is not to be trusted?",
            )

    # In place of a bar, which is told of every piece before it is written: there the work can be stopped.
    beat: Any = type("_Beat", (_NoBar,), {"check": staticmethod(check)})

    with part.open("ab") as out:
        http_get(
            stated.url,
            out,
            resume_size=have,
            # The token is for the hub, not for whoever it sends us to.
            headers=build_hf_headers(token=None if stated.own else False) | {"Accept-Encoding": "identity"},
            expected_size=stated.size,
            displayed_filename=file.path,
            tqdm_class=beat,
        )
        out.flush()
        os.fsync(out.fileno())


def _ask_again(file: File, stated: Stated) -> Stated:
    try:
        return ask(file, stated.commit if COMMIT.fullmatch(stated.commit) else file.revision)
    except Unreachable:
        return stated


def _transient() -> tuple[type[Exception], ...]:
    from huggingface_hub.errors import HfHubHTTPError

    # The library brings httpx or httpx2, by version; what either raises has the base of the library's own error.
    (network,) = (base for base in HfHubHTTPError.__bases__ if base is not OSError)
    return network, OSError


def _reason(error: Exception) -> str:
    # Never the text: it may quote an address with a signature in it.
    response: Any = getattr(error, "response", None)
    return f"HTTP {response.status_code}" if response is not None else type(error).__name__


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


class _NoBar:
    """Stands where the library would draw a bar: the sizes of the files on disk are the progress."""

    check: Callable[[int], None]

    def __init__(self, *_: object, initial: int = 0, **__: object) -> None:
        self._arrived = initial

    def update(self, more: int = 1) -> None:
        """Take note of `more` bytes.

        Raises ConnectionError where the library takes bytes back, because the server ignores ranges: it would begin
        anew as often as such a server cuts the connection, without end. Here attempts are counted.
        """
        if more < 0:
            raise ConnectionError("the server ignores ranges")
        self._arrived += more
        self.check(self._arrived)

    def __enter__(self) -> _NoBar:
        return self

    def __exit__(self, *_: object) -> None: ...
