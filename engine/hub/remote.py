"""Requests to the Hugging Face Hub: the metadata of a file, and its bytes with resumed downloads.

`hf_hub_download` starts each file from the beginning in every process (docs/decisions/010-own-part-files.md). So this
module uses the library's request for metadata and its streaming with ranges, and writes the file itself.
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

#: Seconds to wait after the first consecutive failure, the second, ...; after the last one the download fails.
#: Any byte that arrives restarts the count.
WAITS = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0, 60.0)
_SHA256 = re.compile(r"[0-9a-f]{64}")
#: The only hashes that are accepted from a hub: git's SHA-1 of a small file, the SHA-256 of a large one.
_ETAG = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
#: No file has as many bytes.
_MOST = 2**63
#: Errors of the disk, which another attempt cannot fix.
_LOCAL = frozenset(
    (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ENOENT, errno.ENOTDIR)
)


@dataclass(frozen=True)
class HubMetadata:
    """The hub's metadata of a file."""

    commit: str
    size: int
    #: SHA-256 of a large file, git's SHA-1 of a small one.
    etag: str
    url: str
    #: Whether `url` is on the hub itself, so that the token may be sent to it.
    own: bool

    @property
    def sha256(self) -> str:
        """Return the file's SHA-256, "" if the hub states another hash."""
        return self.etag if _SHA256.fullmatch(self.etag) else ""


class Unreachable(SourceError):
    """The hub does not answer, or not usefully."""


def ask(file: File, revision: str) -> HubMetadata:
    """Ask the hub about `file` at `revision`.

    The answer is not trusted: hash, commit, size and address must be well-formed. Raises SourceError if the hub
    refuses, if its answer is invalid or describes another file, and Unreachable.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError

    endpoint = os.environ.get("HF_ENDPOINT")
    url = hf_hub_url(file.repository, file.path, revision=revision, endpoint=endpoint)
    try:
        answer = get_hf_file_metadata(url, endpoint=endpoint, retry_on_errors=True)
    except ValueError:
        # The library cannot parse the answer, for example an invalid address.
        raise SourceError(
            f"the hub's answer for {file.path} of {file.repository} is invalid", field="download"
        ) from None
    except _transient() as error:
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else 0
        if status in (401, 403, 404):
            raise SourceError(
                f"the hub answers {status} for {file.path} of {file.repository} at {revision}",
                field="download",
                hint="set HF_TOKEN to a token that may read it" if status != 404 else "fix the manifest",
            ) from None
        raise Unreachable(
            f"the hub does not answer for {file.path} of {file.repository} ({_reason(error)})",
            field="download",
            hint="start again later, or check HF_ENDPOINT and the proxy",
        ) from None
    size, etag = _checked(file, answer)
    metadata = HubMetadata(
        commit=answer.commit_hash or revision,
        size=size,
        etag=etag,
        url=answer.location,
        # The scheme is compared, too: an answer must not make us send the token unencrypted.
        own=urlsplit(answer.location)[:2] == urlsplit(url)[:2],
    )
    for what, expected, actual in (
        ("size", file.size if file.exact else None, metadata.size),
        ("SHA-256", file.sha256 or None, metadata.sha256 or None),
        ("commit", revision if COMMIT.fullmatch(revision) else None, metadata.commit),
    ):
        if expected is not None and actual is not None and expected != actual:
            raise SourceError(
                f"the hub offers another file as {file.path} of {file.repository}: "
                f"{what} {actual} instead of {expected}",
                field="download",
                hint="check whether HF_ENDPOINT is a mirror that you trust",
            )
    return metadata


def _checked(file: File, answer: Any) -> tuple[int, str]:
    """Return the size and hash that the hub states for `file`. Raises SourceError if a value is malformed."""
    if answer.size is None or answer.etag is None:
        raise SourceError(f"the hub states no size and hash of {file.key}", field="download")
    try:
        scheme = urlsplit(answer.location).scheme
    except ValueError:
        scheme = ""
    for what, is_valid in (
        ("a hash that is neither a SHA-256 nor git's SHA-1", _ETAG.fullmatch(answer.etag)),
        ("an invalid size", 0 <= answer.size < _MOST),
        ("an invalid commit", not answer.commit_hash or COMMIT.fullmatch(answer.commit_hash)),
        ("an address that is neither http nor https", scheme in ("http", "https")),
    ):
        if not is_valid:
            # The value is not quoted: it may be meant to mislead the reader or to control their terminal.
            raise SourceError(
                f"the hub states {what} for {file.path} of {file.repository}",
                field="download",
                hint="check whether HF_ENDPOINT is a mirror that you trust",
            )
    return answer.size, answer.etag


def fetch(
    file: File,
    metadata: HubMetadata,
    part: Path,
    *,
    waits: Sequence[float] = WAITS,
    pause: Callable[[float], None],
) -> HubMetadata:
    """Download `file` into `part`, resuming after the bytes that `part` has.

    Args:
        part: a file for this content only; the caller has the folder's lock.
        pause: waits the given number of seconds, and raises if the work must stop.

    Returns:
        The hub's latest metadata. Raises SourceError after more consecutive failures than `waits` has entries.
    """
    failures = 0
    while True:
        before = _size(part)
        if before > metadata.size:
            part.unlink()
            before = 0
        if before == metadata.size and part.exists():
            return metadata
        pause(0)
        try:
            _stream(file, metadata, part, before, pause)
            continue
        except _transient() as error:
            if isinstance(error, OSError) and error.errno in _LOCAL:
                raise
            failures = 1 if _size(part) > before else failures + 1
            reason, wait = _reason(error), waits[min(failures, len(waits)) - 1] if waits else 0
            if failures > len(waits):
                raise SourceError(
                    f"the download of {file.path} of {file.repository} failed ({reason}) after {_size(part)} of "
                    f"{metadata.size} bytes",
                    field="download",
                    hint="start again later to resume it",
                ) from None
        pause(wait)
        # Addresses of a content delivery network expire.
        metadata = _ask_again(file, metadata)


def _stream(file: File, metadata: HubMetadata, part: Path, have: int, pause: Callable[[float], None]) -> None:
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # in its __all__, made at run time

    def check(arrived: int) -> None:
        pause(0)
        if arrived > metadata.size:
            raise SourceError(
                f"{file.path} of {file.repository} is longer than the {metadata.size} bytes that the hub states",
                field="download",
                hint="check whether HF_ENDPOINT is a mirror that you trust",
            )

    # Replaces the library's progress bar, which is updated before each piece is written: the work can stop there.
    bar: Any = type("_CheckingBar", (_NoBar,), {"check": staticmethod(check)})

    with part.open("ab") as out:
        http_get(
            metadata.url,
            out,
            resume_size=have,
            # The token is for the hub only, not for the server that it redirects to.
            headers=build_hf_headers(token=None if metadata.own else False) | {"Accept-Encoding": "identity"},
            expected_size=metadata.size,
            displayed_filename=file.path,
            tqdm_class=bar,
        )
        out.flush()
        os.fsync(out.fileno())


def _ask_again(file: File, metadata: HubMetadata) -> HubMetadata:
    try:
        return ask(file, metadata.commit if COMMIT.fullmatch(metadata.commit) else file.revision)
    except Unreachable:
        return metadata


def _transient() -> tuple[type[Exception], ...]:
    from huggingface_hub.errors import HfHubHTTPError

    # The library uses httpx or httpx2, by version; the library's own error has the base class of its HTTP errors.
    (network,) = (base for base in HfHubHTTPError.__bases__ if base is not OSError)
    return network, OSError


def _reason(error: Exception) -> str:
    # Never the text: it may quote a signed address.
    response: Any = getattr(error, "response", None)
    return f"HTTP {response.status_code}" if response is not None else type(error).__name__


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


class _NoBar:
    """Replaces the library's bar: the progress is measured by the sizes of the files on disk."""

    check: Callable[[int], None]

    def __init__(self, *_: object, initial: int = 0, **__: object) -> None:
        self._arrived = initial

    def update(self, more: int = 1) -> None:
        """Count `more` bytes.

        Raises ConnectionError if the library takes bytes back because the server ignores ranges: the library would
        restart without end if such a server keeps closing the connection. Here attempts are counted.
        """
        if more < 0:
            raise ConnectionError("the server ignores ranges")
        self._arrived += more
        self.check(self._arrived)

    def __enter__(self) -> _NoBar:
        return self

    def __exit__(self, *_: object) -> None: ...
