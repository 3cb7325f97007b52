"""The hashes of a file: its SHA-256, and the SHA-1 that git, and so the hub, knows a small file by."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

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
    """Return the name that git gives to a file with this content. Raises OSError."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
