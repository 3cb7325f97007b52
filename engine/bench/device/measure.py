"""The measuring process: its device, its clock, and rows that may fail without stopping the others."""

from __future__ import annotations

import gc
import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from engine.bench.device.shapes import FULL, REDUCED, Shapes
from engine.errors import ConfigError, EngineError
from engine.machine.device import resolve_device
from engine.planning.gpus import Card, find_card

Row = tuple[str, dict[str, Any]]
Rows = Iterator[Row]

#: A figure is not measured again after this many seconds.
_PATIENCE = 5.0
#: Lines of a traceback that are kept.
_TAIL = 4


class Skipped(Exception):
    """Not measured, for a reason that is not a failure."""


class DeviceLost(Exception):
    """The device cannot be used any more in this process: a kernel's error stays in its CUDA context."""


class DeviceBench:
    """Measures on one device. Raises ConfigError if the device does not exist here."""

    def __init__(self, device: str = "auto", runs: int = 5, reduced: bool = False) -> None:
        cuda = torch.cuda.is_available()
        self.device = resolve_device(device, cuda=cuda)
        if self.device not in ("cuda", "cpu") or (self.device == "cuda" and not cuda):
            raise ConfigError(f"no device {device!r} here", field="bench device", hint="auto, cuda or cpu")
        self.cuda = self.device == "cuda"
        #: A CPU would take hours for the full sizes.
        self.shapes: Shapes = REDUCED if reduced or not self.cuda else FULL
        self.runs = max(1, runs)
        self.dtype = torch.bfloat16
        self.card: Card | None = find_card(torch.cuda.get_device_name()) if self.cuda else None
        self.random = torch.Generator().manual_seed(0)
        self._ends = float("inf")

    # --- rows and time ------------------------------------------------------------------------------------------------

    def begin(self, budget: float) -> None:
        """Start the clock of a part."""
        self._ends = time.monotonic() + budget

    def seconds_left(self) -> float:
        """Return the seconds that remain for the part."""
        return self._ends - time.monotonic()

    def need(self, seconds: float) -> None:
        """Raise Skipped if less than `seconds` remain for the part."""
        if self.seconds_left() < seconds:
            raise Skipped(
                f"takes up to {seconds:.0f} s, and {max(0.0, self.seconds_left()):.0f} s of the part are left"
            )

    def need_cuda(self) -> None:
        """Raise Skipped without CUDA."""
        if not self.cuda:
            raise Skipped("needs CUDA")

    def attempt(self, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return the result of `measure`, or why there is none.

        {"skipped": why} if something is not installed or not possible here, {"failed": error, "where": [lines]} for any
        other error. Memory of a failure is freed. Raises DeviceLost.
        """
        try:
            return measure()
        except (Skipped, EngineError, ModuleNotFoundError) as error:
            return {"skipped": str(error)}
        except Exception as error:  # noqa: BLE001 - a kernel may raise anything, and the other figures must still be measured
            row = failure(error)
        self.free()
        return row

    def free(self) -> None:
        """Return unused memory to the device. Raises DeviceLost."""
        gc.collect()
        if self.cuda:
            try:
                torch.cuda.synchronize()
                torch.cuda.empty_cache()
            except RuntimeError as error:
                raise DeviceLost(first_line(error)) from error

    # --- figures ------------------------------------------------------------------------------------------------------

    def wait(self) -> None:
        """Wait until the device has finished."""
        if self.cuda:
            torch.cuda.synchronize()

    def once(self, work: Callable[[], Any]) -> float:
        """Return the seconds of one run."""
        self.wait()
        began = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - began

    def seconds(self, work: Callable[[], Any]) -> float:
        """Return the median of the runs after a warm-up; fewer runs if one takes seconds."""
        self.once(work)
        times = [self.once(work)]
        while len(times) < self.runs and sum(times) + times[-1] < _PATIENCE:
            times.append(self.once(work))
        return statistics.median(times)

    def with_peak(self, work: Callable[[], Any]) -> dict[str, Any]:
        """Return seconds, and on CUDA the peak of allocated memory and of all memory that torch reserved."""
        if not self.cuda:
            return {"seconds": self.seconds(work), "peak_bytes": None, "reserved_bytes": None}
        self.free()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return {
            "seconds": self.seconds(work),
            "peak_bytes": torch.cuda.max_memory_allocated() - before,
            "reserved_bytes": torch.cuda.max_memory_reserved(),
        }

    def allocated(self) -> int | None:
        """Return the bytes of all tensors on the device; None on a CPU."""
        return torch.cuda.memory_allocated() if self.cuda else None

    def rate(self, operations: float, seconds: float) -> dict[str, Any]:
        """Return 10^12 operations per second, and their share of the card's bfloat16 rate, if known."""
        tflops = operations / seconds / 1e12
        return {"tflops": tflops, "share": None if self.card is None else tflops / self.card.bf16_tflops}

    def noise(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Return normally distributed values on the device."""
        return torch.randn(shape, device=self.device, dtype=torch.float32).to(dtype or self.dtype)


def largest_difference(actual: Tensor, expected: Tensor) -> float:
    """Return the largest difference as a share of the largest value."""
    return float((actual.float() - expected.float()).abs().max() / expected.float().abs().max())


def psnr(actual: Tensor, expected: Tensor) -> float | None:
    """Return the peak signal-to-noise ratio in dB over the range of `expected`; None if both are equal."""
    error = float((actual.double() - expected.double()).square().mean())
    reach = float(expected.double().max() - expected.double().min())
    return None if error == 0 else 10 * float(torch.log10(torch.tensor(reach**2 / error, dtype=torch.float64)))


def failure(error: BaseException) -> dict[str, Any]:
    """Return an error's line and the end of its traceback."""
    frames = traceback.extract_tb(error.__traceback__)[-_TAIL:]
    where = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
    return {"failed": first_line(error), "where": where}


def first_line(error: BaseException) -> str:
    """Return an error as one line of at most 300 characters."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:300]}"
