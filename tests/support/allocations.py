"""What torch's CPU allocator counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def allocated(work: Callable[[], Any]) -> int:
    """Return the peak that torch's CPU allocator counts above what is there before."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    # Attention holds a buffer for each thread, which is not the network's.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler, torch.no_grad():
            work()
    finally:
        torch.set_num_threads(threads)
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak
