"""Keeps Python's garbage collector from looking through what imports leave, which it never frees.

Importing the libraries makes more than a million objects, and while they are made the collector looks at all of them
again and again.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_own_process = False


def own_process() -> None:
    """Say that this process only runs the engine: then it may keep for good whatever the imports leave."""
    global _own_process
    _own_process = True


@contextmanager
def uncollected(*, final: bool = False) -> Iterator[None]:
    """Switch the collector off meanwhile, where it is on.

    `final`: these are the last large imports. In an own process the collector then ignores all objects that there are.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if final and _own_process:
            gc.freeze()
        if enabled:
            gc.enable()
