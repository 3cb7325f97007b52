"""The memory of this process: how much a generation takes at most, by stage; and giving back what is free."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable, Mapping
from pathlib import Path

from engine.data import Peak


class Peaks:
    """Reads, after each stage, the peaks that the kernel and torch keep of this process.

    Both count anew from here on, which a process can do for one generation at a time: of two at once, each is told of
    both. A stage costs it less than a millisecond.
    """

    def __init__(self, device: str = "cpu") -> None:
        """Begin. `device` is where forwards run: "cuda" is looked at, too."""
        self._read: dict[str, Callable[[], int]] = {}
        self._start: dict[str, int] = {}
        self._raised: dict[str, dict[str, int]] = {}
        begun = {"host": _begin_host()}
        if device == "cuda":
            begun["device"] = _begin_device()
        for where, started in begun.items():
            if started is not None:
                self._start[where], self._read[where] = started
                self._raised[where] = {}

    def note(self, stage: str) -> None:
        """Say that all that raised a peak since the last note was `stage`."""
        for where, read in self._read.items():
            raised = self._raised[where]
            more = read() - self._start[where] - sum(raised.values())
            if more > 0:
                raised[stage] = raised.get(stage, 0) + more

    @property
    def found(self) -> Mapping[str, Peak]:
        """The peaks so far: "host" where the kernel tells it, which is Linux, and "device" on CUDA."""
        return {
            where: Peak(start, start + sum(self._raised[where].values()), dict(self._raised[where]))
            for where, start in self._start.items()
        }


def reclaim() -> None:
    """Free what only reference cycles hold, and return free memory to the operating system.

    The modules that diffusers and transformers build are in reference cycles, so their weights live until the garbage
    collector runs; and glibc keeps what was freed in between, for allocations that may never come.
    """
    gc.collect()
    # Only glibc has it.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def forget_peak() -> int:
    """Have the kernel count this process' peak, VmHWM, from now on; return what is in memory now in KiB.

    Linux only; raises OSError elsewhere, and where the kernel does not let a process do that.
    """
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def status(key: str, process: int | str = "self") -> int:
    """Return a figure of a process by the kernel's name for it: in KiB where it is memory, such as VmHWM."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


_Started = tuple[int, Callable[[], int]]


def _begin_host() -> _Started | None:
    try:
        return forget_peak() * 1024, lambda: status("VmHWM") * 1024
    except OSError:
        return None


def _begin_device() -> _Started:
    import torch

    # Before the first allocation there is nothing to reset, and torch refuses to.
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated
