"""A full disk, without filling one."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def file_limit(most: int) -> Iterator[None]:
    """Let no file of this process grow beyond `most` bytes: the write fails as on a full disk, with another number.

    Not a fixture: pytest reports a test before its fixtures end, perhaps into a file that is larger.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
