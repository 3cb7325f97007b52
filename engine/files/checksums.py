"""The digests of a file, and whether a store has what was sent by those that it states."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Bytes. Larger files go up in parts of this size; the digests are over the same parts.
PART = 8 * 2**20
#: Bytes that are read at a time.
_PIECE = 4 * 2**20


def sha256_of(path: Path, pause: Callable[[float], None] = lambda _: None) -> str:
    """Return the SHA-256 of a file; `pause` is called now and then and may raise to stop. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
            pause(0)
    return digest.hexdigest()


def git_sha1_of(path: Path) -> str:
    """Return the name that git, and so the hub, gives to a file with this content. Raises OSError."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


@dataclass(frozen=True)
class Sums:
    """What tells a file from another: its length, its SHA-256, and what a store may calculate."""

    size: int
    #: In hexadecimal digits.
    sha256: str
    #: The number of parts it goes up in.
    parts: int
    #: SHA-256 over the parts' SHA-256, in base64 as stores write it.
    of_parts: str

    @property
    def whole(self) -> str:
        """The file's SHA-256 in base64."""
        return base64.b64encode(bytes.fromhex(self.sha256)).decode("ascii")


def read_sums(path: Path) -> Sums:
    """Read the file once. Raises OSError."""
    whole, several, parts = hashlib.sha256(), hashlib.sha256(), 0
    with path.open("rb") as file:
        while part := file.read(PART):
            whole.update(part)
            several.update(hashlib.sha256(part).digest())
            parts += 1
        size = file.tell()
    return Sums(size, whole.hexdigest(), parts, base64.b64encode(several.digest()).decode("ascii"))


def compare(path: Path, sums: Sums, head: Mapping[str, Any], *, size_alone: bool = False) -> tuple[str, bool]:
    """Return what was compared ("SHA-256", "ETag" or "size"), and whether it differs from the local file's.

    `head` is a store's answer to a HEAD, as boto3 has it. A digest with a dash is one of the parts' digests, and behind
    the dash stands their number; without, it may be the whole file's however that went up, which is how some stores
    have it. One of other parts than ours says nothing.
    """
    if head["ContentLength"] != sums.size:
        return "size", True
    if size_alone:
        return "size", False
    ours = str(sums.parts)
    told, _, parts = head.get("ChecksumSHA256", "").partition("-")
    if told and parts in ("", ours):
        return "SHA-256", told not in ((sums.of_parts,) if parts else (sums.whole, sums.of_parts))
    etag = re.fullmatch(r'"?([0-9a-f]{32})(?:-(\d+))?"?', head.get("ETag", ""))
    # With a key of the customer's or of KMS it is not an MD5.
    known = "SSECustomerAlgorithm" not in head and head.get("ServerSideEncryption", "AES256") == "AES256"
    if etag and known and etag[2] in (None, ours):
        whole, several = _md5s(path)
        return "ETag", etag[1] not in ((several,) if etag[2] else (whole, several))
    return "size", False


def _md5s(path: Path) -> tuple[str, str]:
    """Return the MD5 of the file, and that of its parts' MD5s."""
    whole, several = (hashlib.md5(usedforsecurity=False) for _ in range(2))
    with path.open("rb") as file:
        while part := file.read(PART):
            whole.update(part)
            several.update(hashlib.md5(part, usedforsecurity=False).digest())
    return whole.hexdigest(), several.hexdigest()
