"""Which kernel torch's scaled_dot_product_attention takes on a CUDA device.

Source: torch 2.13, aten/src/ATen/native/transformers/cuda/sdp_utils.cpp (read; for a build with CUDA 13 and cuDNN 9.16
or newer, as torch 2.13 from PyPI brings). What a kernel refuses beyond these rules is seen on a card alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_HALVES = (torch.float16, torch.bfloat16)
_aten: Any = torch.ops.aten


def kernel_order(capability: tuple[int, int]) -> tuple[str, ...]:
    """Return the order in which torch tries its kernels on a device of this compute capability."""
    if capability[0] in (9, 10):
        return "cudnn", "flash", "efficient", "math"
    return "flash", "efficient", "math", "cudnn"


def pick_kernel(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, capability: tuple[int, int]) -> str:
    """Return "cudnn", "flash", "efficient" or "math": the first of the order that takes these (B, H, L, D) tensors."""
    usable = {"cudnn": _cudnn, "flash": _flash, "efficient": _efficient, "math": lambda *_: True}
    return next(name for name in kernel_order(capability) if usable[name](query, key, value, mask))


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, kernel: str, scale: float | None) -> Tensor:
    """Call the operator of `kernel`, whose rules for fake tensors torch has; each allocates as the real one does."""
    kept: dict[str, Any] = {} if scale is None else {"scale": scale}
    if kernel == "flash":
        found = _aten._scaled_dot_product_flash_attention(query, key, value, 0.0, False, **kept)
    elif kernel == "cudnn":
        found = _aten._scaled_dot_product_cudnn_attention(query, key, value, mask, False, 0.0, False, False, **kept)
    elif kernel == "efficient":
        found = _aten._scaled_dot_product_efficient_attention(query, key, value, mask, False, 0.0, False, **kept)
    else:
        found = _aten._scaled_dot_product_attention_math(query, key, value, mask, 0.0, False, None, **kept)
    output: Tensor = found[0]
    return output


def _same_width(query: Tensor, key: Tensor, value: Tensor) -> bool:
    return query.shape[-1] == key.shape[-1] == value.shape[-1]


def _flash(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> bool:
    return mask is None and query.dtype in _HALVES and _same_width(query, key, value) and query.shape[-1] <= 256


def _cudnn(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> bool:
    widths = (query.shape[-1], value.shape[-1])
    return query.dtype in _HALVES and all(width <= 128 and width % 8 == 0 for width in widths)


def _efficient(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> bool:
    # Rows that tensor cores take: 16 bytes.
    aligned = 16 // query.dtype.itemsize
    return query.shape[-1] == key.shape[-1] and query.shape[-1] % aligned == 0 and value.shape[-1] % aligned == 0
