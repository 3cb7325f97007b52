"""What torch.compile counts."""

from __future__ import annotations

from typing import Any


def fresh_counters() -> Any:
    """Forget all graphs of torch.compile, and return its counters, from zero."""
    import torch._dynamo
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    return counters
