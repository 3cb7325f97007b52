"""What CUDA's kernels for products in 8 bits refuse, beyond torch's rules for fake tensors.

Source: aten/src/ATen/native/cuda/Blas.cpp, _int_mm_out_cuda, and ScaledBlas.cpp, _scaled_mm_out_cuda (read; torch
2.13). Layouts, scales and multiples of 16 of `_scaled_mm` are checked by torch itself (torch/_meta_registrations.py).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from engine.machine.products import CAPABILITIES


def check_integers(first: Tensor, second: Tensor, capability: tuple[int, int]) -> None:
    """Raise RuntimeError as `torch._int_mm` does on a device of this compute capability."""
    if capability < CAPABILITIES["int8"]:
        raise RuntimeError("_int_mm_out_cuda not compiled for this compute capability")
    for name, size, fits, rule in (
        ("self.size(0)", first.shape[0], first.shape[0] > 16, "greater than 16"),
        ("self.size(1)", first.shape[1], first.shape[1] % 8 == 0, "greater than 0 and a multiple of 8"),
        ("mat2.size(1)", second.shape[1], second.shape[1] % 8 == 0, "greater than 0 and a multiple of 8"),
    ):
        if not fits or not size:
            raise RuntimeError(f"{name} needs to be {rule}, but got {size}")


def check_floats(dtype: torch.dtype | None, scale: Tensor, capability: tuple[int, int]) -> None:
    """Raise RuntimeError as `torch._scaled_mm` does there; `scale` is that of the first factor."""
    if capability < CAPABILITIES["fp8"]:
        raise RuntimeError(
            "torch._scaled_mm is only supported on CUDA devices with compute capability >= 9.0 or 8.9, or ROCm MI300+"
        )
    if scale.numel() > 1 and dtype not in (torch.bfloat16, torch.float16):
        raise RuntimeError(f"Only bf16 high precision output types are supported for row-wise scaling, got {dtype}")


def checked(capability: tuple[int, int]) -> dict[Any, Any]:
    """Return torch's functions for products in 8 bits -> the same with these checks for CUDA tensors."""

    def integers(first: Tensor, second: Tensor, **others: Any) -> Tensor:
        if first.is_cuda:
            check_integers(first, second, capability)
        return torch._int_mm(first, second, **others)

    def floats(first: Tensor, second: Tensor, **others: Any) -> Tensor:
        if first.is_cuda:
            check_floats(others.get("out_dtype"), others["scale_a"], capability)
        product: Tensor = torch._scaled_mm(first, second, **others)
        return product

    return {torch._int_mm: integers, torch._scaled_mm: floats}
