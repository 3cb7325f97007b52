"""Read files into the operating system's page cache while something else runs, so that loading them is faster."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

#: Bytes of one read: large enough for a network volume, small enough to stop quickly.
_PIECE = 8 * 2**20


@contextmanager
def reading_ahead(paths: Sequence[Path]) -> Iterator[None]:
    """Read `paths` one after the other in a thread while the block runs, and stop when it ends.

    Only the operating system keeps the data, and takes the memory back as it needs it. Files that cannot be read are
    skipped: loading them reports the error.
    """
    stop = threading.Event()
    if paths:
        # Not joined: a read from a slow disk may take long, and does no harm.
        threading.Thread(target=_read, args=(paths, stop), name="multitalk-read-ahead", daemon=True).start()
    try:
        yield
    finally:
        stop.set()


def _read(paths: Sequence[Path], stop: threading.Event) -> None:
    piece = bytearray(_PIECE)
    for path in paths:
        try:
            with path.open("rb", buffering=0) as file:
                while not stop.is_set() and file.readinto(piece):
                    pass
        except OSError:
            continue
