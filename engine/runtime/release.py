"""Gives memory back that nobody uses any more."""

from __future__ import annotations

import ctypes
import gc


def reclaim() -> None:
    """Free what is held by circles of references alone, and return free memory to the operating system.

    Networks that diffusers and transformers build stand in such circles, so that their weights would stay until Python
    happens to look for them; and glibc keeps what was freed in between, for allocations that may never come.
    """
    gc.collect()
    # Only glibc has it.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
