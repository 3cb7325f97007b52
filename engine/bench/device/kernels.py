"""Profile some work: its kernels by kind, the gaps between them, and where the host waited for the device."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from engine.bench.device.measure import DeviceBench

#: Kinds of kernels, tried in this order; all others are element-wise. Names of kernels are those of PyTorch, cuBLAS,
#: cuDNN and CUTLASS on a card, and of ATen's operators on a CPU.
_KINDS = (
    ("element-wise", r"^triton_(?!tem)"),
    ("copies", r"memcpy|memset|direct_copy|aten::(copy_|_to_copy|contiguous|clone)$"),
    ("attention", r"flash|fmha|sdpa|attention|\bmha"),
    ("convolutions", r"fprop|dgrad|wgrad|winograd|conv(?!ert)"),
    ("products", r"gemm|nvjet|cutlass|cublas|wgmma|xmma|triton_tem|aten::(addmm|mm|bmm|baddbmm|_int_mm|_scaled_mm)$"),
)
#: How many kernels a report names, those that took longest.
_NAMED = 12


@dataclass(frozen=True)
class Kernel:
    """One kernel that ran; times in microseconds."""

    name: str
    start: float
    end: float


def kind(name: str) -> str:
    """Return "products", "attention", "convolutions", "copies" or "element-wise" for a kernel's name."""
    lower = name.lower()
    return next((name_of_kind for name_of_kind, pattern in _KINDS if re.search(pattern, lower)), "element-wise")


def profiled(bench: DeviceBench, work: Callable[[], Any]) -> dict[str, Any]:
    """Run `work` once under torch's profiler; return the seconds of each kind, including "gaps", and the kernels.

    On a card "gaps" is the time between the first and the last kernel in which none ran; on a CPU the time outside all
    operators.
    """
    bench.wait()
    # Not both: recording operators on the host takes time, which would appear as gaps between kernels.
    with profile(activities=[ProfilerActivity.CUDA if bench.cuda else ProfilerActivity.CPU]) as prof:
        seconds = bench.once(work)
    if bench.cuda:
        ran = [
            Kernel(event.name, event.time_range.start, event.time_range.end)
            for event in prof.events() or ()
            if event.device_type == torch._C._autograd.DeviceType.CUDA
            and not getattr(event, "is_user_annotation", False)
        ]
        return summary(ran)
    spent = {event.key: (event.self_cpu_time_total / 1e6, event.count) for event in prof.key_averages()}
    return _table(spent, seconds)


def summary(ran: Iterable[Kernel]) -> dict[str, Any]:
    """Return the table of kernels that ran on a device, some perhaps at the same time."""
    spent: dict[str, tuple[float, int]] = {}
    first, last, busy, latest = float("inf"), 0.0, 0.0, 0.0
    for kernel in sorted(ran, key=lambda kernel: kernel.start):
        took, count = spent.get(kernel.name, (0.0, 0))
        spent[kernel.name] = took + (kernel.end - kernel.start) / 1e6, count + 1
        first, last = min(first, kernel.start), max(last, kernel.end)
        busy += max(0.0, kernel.end - max(kernel.start, latest))
        latest = max(latest, kernel.end)
    return _table(spent, max(0.0, last - first) / 1e6, busy / 1e6)


def _table(spent: dict[str, tuple[float, int]], seconds: float, busy: float | None = None) -> dict[str, Any]:
    groups: dict[str, float] = {}
    for name, (took, _) in spent.items():
        groups[kind(name)] = groups.get(kind(name), 0.0) + took
    groups["gaps"] = max(0.0, seconds - (sum(groups.values()) if busy is None else busy))
    longest = sorted(spent.items(), key=lambda item: -item[1][0])[:_NAMED]
    return {
        "seconds": seconds,
        "launches": sum(count for _, count in spent.values()),
        "groups": groups,
        "longest": [{"name": name[:160], "seconds": took, "count": count} for name, (took, count) in longest],
    }


def longest_kernel(bench: DeviceBench, work: Callable[[], Any]) -> str | None:
    """Return the name of the kernel that takes longest in `work`; None on a CPU, or if the profiler saw none."""
    if not bench.cuda:
        return None
    longest = profiled(bench, work)["longest"]
    return str(longest[0]["name"]) if longest else None


def synchronisations(bench: DeviceBench, work: Callable[[], Any]) -> dict[str, Any] | None:
    """Run `work` once and count where the host waited, as reported by torch: {"count", "places"}. None on a CPU.

    torch reports copies and reads of values that wait, not `synchronize` on a stream or an event.
    """
    if not bench.cuda:
        return None
    bench.wait()
    with warnings.catch_warnings(record=True) as messages:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    places = Counter(
        f"{warning.filename}:{warning.lineno}"
        for warning in messages
        if "called a synchronizing" in str(warning.message)
    )
    return {"count": places.total(), "places": dict(places.most_common(_NAMED))}
