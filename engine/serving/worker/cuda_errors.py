"""What an error says about the device, and what the device says of itself; imports no torch."""

from __future__ import annotations

import sys
from typing import Any

#: How CUDA's libraries say that memory has run out, where PyTorch has no class of its own for it.
_FULL = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether the device's memory ran out."""
    # By name: whoever could raise it has imported torch, and nobody else should.
    names = ((kind.__module__.partition(".")[0], kind.__name__) for kind in type(error).__mro__)
    if ("torch", "OutOfMemoryError") in names:
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _FULL)


def is_device_lost(error: BaseException) -> bool:
    """Say whether the device is of no more use to this process, as after an illegal access."""
    return isinstance(error, RuntimeError) and "CUDA error" in str(error) and not is_out_of_memory(error)


def device_state(chosen: str, *, loaded: bool) -> dict[str, Any]:
    """Return what a caller may know of the device, which is asked itself only once the weights are `loaded`."""
    torch: Any = sys.modules.get("torch")
    # Before, another thread may be in the middle of importing torch.
    if not loaded or torch is None or not torch.cuda.is_initialized():
        return {"device": chosen}
    cuda = torch.cuda
    free, total = cuda.mem_get_info()
    return {"device": "cuda", "name": cuda.get_device_name(), "memory_bytes": total, "free_bytes": free}
