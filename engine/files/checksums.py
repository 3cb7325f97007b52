"""The digests of a file, and their comparison with those that a store states."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Bytes. Larger files are uploaded in parts of this size; the digests are of the same parts.
PART = 8 * 2**20
#: Bytes per read.
_PIECE = 4 * 2**20


def sha256_of(path: Path, pause: Callable[[float], None] = lambda _: None) -> str:
    """Return the SHA-256 of a file; `pause` is called after each piece and may raise to stop. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
            pause(0)
    return digest.hexdigest()


def git_sha1_of(path: Path) -> str:
    """Return git's SHA-1 of a file's content, which the hub states for small files. Raises OSError."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


@dataclass(frozen=True)
class Sums:
    """What identifies a file's content: its length, its SHA-256, and digests that a store may calculate."""

    size: int
    #: In hexadecimal digits.
    sha256: str
    #: Number of parts in which it is uploaded.
    parts: int
    #: SHA-256 of the parts' SHA-256 values, in base64 as stores write it.
    of_parts: str

    @property
    def whole(self) -> str:
        """The file's SHA-256 in base64."""
        return base64.b64encode(bytes.fromhex(self.sha256)).decode("ascii")


def read_sums(path: Path) -> Sums:
    """Return the checksums of a file, which is read once. Raises OSError."""
    whole, of_parts, parts = hashlib.sha256(), hashlib.sha256(), 0
    with path.open("rb") as file:
        while part := file.read(PART):
            whole.update(part)
            of_parts.update(hashlib.sha256(part).digest())
            parts += 1
        size = file.tell()
    return Sums(size, whole.hexdigest(), parts, base64.b64encode(of_parts.digest()).decode("ascii"))


def compare(path: Path, sums: Sums, head: Mapping[str, Any], *, size_alone: bool = False) -> tuple[str, bool]:
    """Return what was compared ("SHA-256", "ETag" or "size"), and whether it differs from the local file's.

    `head` is a store's answer to a HEAD, as boto3 returns it. A digest with a dash is a digest of the parts' digests;
    their number follows the dash. A digest without a dash may be of the whole file even after an upload in parts,
    because some stores do that. A digest of another number of parts than ours is ignored.
    """
    if head["ContentLength"] != sums.size:
        return "size", True
    if size_alone:
        return "size", False
    ours = str(sums.parts)
    sha256, _, parts = head.get("ChecksumSHA256", "").partition("-")
    if sha256 and parts in ("", ours):
        return "SHA-256", sha256 not in ((sums.of_parts,) if parts else (sums.whole, sums.of_parts))
    etag = re.fullmatch(r'"?([0-9a-f]{32})(?:-(\d+))?"?', head.get("ETag", ""))
    # With encryption by a customer's or a KMS key the ETag is not an MD5.
    is_md5 = "SSECustomerAlgorithm" not in head and head.get("ServerSideEncryption", "AES256") == "AES256"
    if etag and is_md5 and etag[2] in (None, ours):
        whole, of_parts = _md5s(path)
        return "ETag", etag[1] not in ((of_parts,) if etag[2] else (whole, of_parts))
    return "size", False


def _md5s(path: Path) -> tuple[str, str]:
    """Return the MD5 of the file, and the MD5 of its parts' MD5s."""
    whole, of_parts = (hashlib.md5(usedforsecurity=False) for _ in range(2))
    with path.open("rb") as file:
        while part := file.read(PART):
            whole.update(part)
            of_parts.update(hashlib.md5(part, usedforsecurity=False).digest())
    return whole.hexdigest(), of_parts.hexdigest()
