"""One measuring process: its device, its clock, and rows that fail without stopping the others."""

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

#: Seconds after which a figure is not measured again.
_PATIENCE = 5.0
#: Lines of a traceback that are kept.
_TAIL = 4


class Skipped(Exception):
    """Not measured, for a reason that is no failure."""


class DeviceLost(Exception):
    """The device answers no more in this process: an error of a kernel stays with its CUDA context."""


class Bench:
    """Measures on one device. Raises ConfigError for a device that is not here."""

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

    def left(self) -> float:
        """Return the seconds that the part has left."""
        return self._ends - time.monotonic()

    def need(self, seconds: float) -> None:
        """Raise Skipped if the part has less than `seconds` left."""
        if self.left() < seconds:
            raise Skipped(f"takes up to {seconds:.0f} s, and {max(0.0, self.left()):.0f} s of the part are left")

    def need_cuda(self) -> None:
        """Raise Skipped without CUDA."""
        if not self.cuda:
            raise Skipped("needs CUDA")

    def tried(self, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return what `measure` returns, or why there is nothing.

        {"skipped": why} for what is not installed or not possible here, {"failed": error, "where": [lines]} for
        anything else. Memory of a failure is freed. Raises DeviceLost.
        """
        try:
            return measure()
        except (Skipped, EngineError, ModuleNotFoundError) as error:
            return {"skipped": str(error)}
        except Exception as error:  # noqa: BLE001 - a kernel may raise anything, and the other figures are wanted
            row = failure(error)
        self.free()
        return row

    def free(self) -> None:
        """Return memory that nobody uses to the device. Raises DeviceLost."""
        gc.collect()
        if self.cuda:
            try:
                torch.cuda.synchronize()
                torch.cuda.empty_cache()
            except RuntimeError as error:
                raise DeviceLost(first_line(error)) from error

    # --- figures ------------------------------------------------------------------------------------------------------

    def wait(self) -> None:
        """Wait until the device has done what it was given."""
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
        """Return the median of the runs after one that does not count; fewer runs where one takes seconds."""
        self.once(work)
        times = [self.once(work)]
        while len(times) < self.runs and sum(times) + times[-1] < _PATIENCE:
            times.append(self.once(work))
        return statistics.median(times)

    def measured(self, work: Callable[[], Any]) -> dict[str, Any]:
        """Return seconds, and on CUDA the peak of what was allocated for it and of what torch reserved in all."""
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
        """Return the bytes of all tensors on the device, None on a CPU."""
        return torch.cuda.memory_allocated() if self.cuda else None

    def rate(self, operations: float, seconds: float) -> dict[str, Any]:
        """Return 10^12 operations a second, and their share of the card's bfloat16 rate where that is known."""
        tflops = operations / seconds / 1e12
        return {"tflops": tflops, "share": None if self.card is None else tflops / self.card.bf16_tflops}

    def noise(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Return normal values on the device."""
        return torch.randn(shape, device=self.device, dtype=torch.float32).to(dtype or self.dtype)


def largest_difference(found: Tensor, wanted: Tensor) -> float:
    """Return the largest difference as a share of the largest value."""
    return float((found.float() - wanted.float()).abs().max() / wanted.float().abs().max())


def psnr(found: Tensor, wanted: Tensor) -> float | None:
    """Return the peak signal to noise ratio in dB over the range of `wanted`, None where both are equal."""
    error = float((found.double() - wanted.double()).square().mean())
    reach = float(wanted.double().max() - wanted.double().min())
    return None if error == 0 else 10 * float(torch.log10(torch.tensor(reach**2 / error, dtype=torch.float64)))


def failure(error: BaseException) -> dict[str, Any]:
    """Return an error's line and the end of its traceback."""
    frames = traceback.extract_tb(error.__traceback__)[-_TAIL:]
    where = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
    return {"failed": first_line(error), "where": where}


def first_line(error: BaseException) -> str:
    """Return an error in one line of at most 300 characters."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:300]}"
