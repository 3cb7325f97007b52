"""Classifies errors of the device and describes its state, without importing torch."""

from __future__ import annotations

import sys
from typing import Any

#: Messages of CUDA libraries when memory runs out, where PyTorch has no class for the error.
_FULL = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether the device's memory ran out."""
    # By name, to avoid the import: only a process that has imported torch can raise it.
    names = ((kind.__module__.partition(".")[0], kind.__name__) for kind in type(error).__mro__)
    if ("torch", "OutOfMemoryError") in names:
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _FULL)


def is_device_lost(error: BaseException) -> bool:
    """Return whether this process can no longer use the device, as after an illegal memory access."""
    return isinstance(error, RuntimeError) and "CUDA error" in str(error) and not is_out_of_memory(error)


def device_state(chosen: str, *, loaded: bool) -> dict[str, Any]:
    """Return the public state of the device; the device itself is asked only if the weights are `loaded`."""
    torch: Any = sys.modules.get("torch")
    # Before that, another thread may still be importing torch.
    if not loaded or torch is None or not torch.cuda.is_initialized():
        return {"device": chosen}
    cuda = torch.cuda
    free, total = cuda.mem_get_info()
    return {"device": "cuda", "name": cuda.get_device_name(), "memory_bytes": total, "free_bytes": free}
