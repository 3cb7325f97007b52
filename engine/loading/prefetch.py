"""Reads files into the machine's cache while something else is done, so that whoever needs them finds them there."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

#: Bytes of one read: large enough for a volume across a network, small enough to stop soon.
_PIECE = 8 * 2**20


@contextmanager
def reading_ahead(paths: Sequence[Path]) -> Iterator[None]:
    """Read `paths` one after the other, in a thread, while the block runs; what is not read by then is left.

    Nothing is kept but by the operating system, which takes the memory back as it needs it. A file that cannot be read
    is passed over: whoever loads it says what is wrong with it.
    """
    ended = threading.Event()
    if paths:
        # Not waited for: a read of a slow disk takes its time, and disturbs nobody.
        threading.Thread(target=_read, args=(paths, ended), name="multitalk-read-ahead", daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def _read(paths: Sequence[Path], ended: threading.Event) -> None:
    piece = bytearray(_PIECE)
    for path in paths:
        try:
            with path.open("rb", buffering=0) as file:
                while not ended.is_set() and file.readinto(piece):
                    pass
        except OSError:
            continue
