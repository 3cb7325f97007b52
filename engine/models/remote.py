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
from engine.models.manifest import COMMIT, File

#: Seconds to wait after the first failure in a row, the second, ...; after the last one the download is given up.
#: Any byte that arrives begins the row anew.
WAITS = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0, 60.0)
_SHA256 = re.compile(r"[0-9a-f]{64}")
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

    Raises SourceError where it refuses, or states another file, and Unreachable.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError

    endpoint = os.environ.get("HF_ENDPOINT")
    url = hf_hub_url(file.repository, file.path, revision=revision, endpoint=endpoint)
    try:
        found = get_hf_file_metadata(url, endpoint=endpoint, retry_on_errors=True)
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
    if found.size is None or found.etag is None:
        raise SourceError(f"the hub states no size and hash of {file.key}", field="download")
    stated = Stated(
        commit=found.commit_hash or revision,
        size=found.size,
        etag=found.etag,
        url=found.location,
        own=urlsplit(found.location).netloc == urlsplit(url).netloc,
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

    # In place of a bar, which is told of every piece that arrives: there the work can be stopped.
    beat: Any = type("_Beat", (_NoBar,), {"update": lambda _, __=1: pause(0)})

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

    def __init__(self, *_: object, **__: object) -> None: ...

    def __enter__(self) -> _NoBar:
        return self

    def __exit__(self, *_: object) -> None: ...
