"""Which kernel torch's scaled_dot_product_attention uses on a CUDA device, and what it allocates.

Source: torch's aten/src/ATen/native/transformers/cuda/sdp_utils.cpp, sdp_utils_cpp.h and attention.cpp (read; for a
build with CUDA 13 and cuDNN 9.16 or newer, as torch 2.13 from PyPI brings). Without gradients and dropout. What a
kernel refuses beyond these rules is seen on a card alone.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

_HALVES = (torch.float16, torch.bfloat16)
#: Alignment of rows for tensor cores, bytes.
_ROW = 16
#: Multiples to which heads are padded for flash attention, and rows of a mask for the efficient kernel.
_HEAD = _MASK = 8
_aten: Any = torch.ops.aten


class Call(NamedTuple):
    """Arguments of an attention call: (B, H, L, D) tensors."""

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None = None
    causal: bool = False


def kernel_order(capability: tuple[int, int]) -> tuple[str, ...]:
    """Return the order in which torch tries its kernels on a device of this compute capability."""
    if capability[0] in (9, 10):
        return "cudnn", "flash", "efficient", "math"
    return "flash", "efficient", "math", "cudnn"


def pick_kernel(call: Call, capability: tuple[int, int]) -> str:
    """Return "cudnn", "flash", "efficient" or "math": the first of the order that takes these tensors."""
    usable = {"cudnn": _cudnn, "flash": _flash, "efficient": _efficient, "math": lambda *_: True}
    return next(name for name in kernel_order(capability) if usable[name](call, capability))


def attend(call: Call, kernel: str, scale: float | None) -> Tensor:
    """Call the operator of `kernel` on fake tensors; torch's rules for it allocate like the real one."""
    query, key, value, mask, causal = call
    width = value.shape[-1]
    options: dict[str, Any] = {} if scale is None else {"scale": scale}
    if mask is not None and mask.dtype == torch.bool and kernel != "flash":
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(mask.logical_not(), float("-inf"))
    if kernel == "flash":
        options = {"scale": query.shape[-1] ** -0.5 if scale is None else scale}
        query, key, value = map(_whole_rows, (query, key, value))
        result = _aten._scaled_dot_product_flash_attention(query, key, value, 0.0, causal, **options)
    elif kernel == "cudnn":
        result = _aten._scaled_dot_product_cudnn_attention(
            query, key, value, mask, False, 0.0, causal, False, **options
        )
    elif kernel == "efficient":
        mask = None if mask is None else _whole_mask(mask, query, key)
        result = _aten._scaled_dot_product_efficient_attention(query, key, value, mask, False, 0.0, causal, **options)
    else:
        result = _aten._scaled_dot_product_attention_math(query, key, value, mask, 0.0, causal, None, **options)
    output: Tensor = result[0]
    return output[..., :width]


def _whole_rows(tensor: Tensor) -> Tensor:
    over = -tensor.shape[-1] % _HEAD
    return F.pad(tensor, (0, over)) if over else tensor


def _whole_mask(mask: Tensor, query: Tensor, key: Tensor) -> Tensor:
    if mask.stride(-1) != 1 or any(stride % _MASK for stride in mask.stride()[:-1]):
        width = mask.shape[-1]
        mask = F.pad(mask, (0, _MASK - width % _MASK))[..., :width]
    return mask.expand(*query.shape[:3], key.shape[2])


def _fused(call: Call, *, single: bool) -> bool:
    """Return whether a fused kernel accepts these layouts: contiguous rows, heads in order.

    `single`: rows of one value may lie in any order.
    """
    tensors = call[:3]
    dense = all(tensor.dim() == 4 and tensor.shape[2] > 0 for tensor in tensors)
    rows = all(tensor.stride(-1) == 1 or (single and tensor.shape[-1] == 1) for tensor in tensors)
    if call.mask is not None:
        rows = rows and (call.mask.stride(-1) == 1 or (single and call.mask.shape[-1] == 1))
    return dense and rows and len({tensor.shape[:2] for tensor in tensors}) == 1


def _is_between(capability: tuple[int, int], least: tuple[int, int]) -> bool:
    return least <= capability <= (12, 1)


def _flash(call: Call, capability: tuple[int, int]) -> bool:
    query, key, value, mask, causal = call
    same = query.shape[-1] == key.shape[-1] == value.shape[-1] <= 256
    square = not causal or query.shape[-2] == key.shape[-2]
    kind = mask is None and query.dtype in _HALVES
    return kind and same and square and _is_between(capability, (8, 0)) and _fused(call, single=True)


def _cudnn(call: Call, capability: tuple[int, int]) -> bool:
    query, key, value, *_ = call
    widths = (query.shape[-1], value.shape[-1])
    heads = all(width <= 128 and width % 8 == 0 for width in widths)
    # DeepSeek's heads.
    heads = heads or (widths == (192, 128) and capability[0] in (9, 10))
    kind = query.dtype in _HALVES and key.shape[-2] != 1
    return kind and heads and _is_between(capability, (8, 0)) and _fused(call, single=True)


def _efficient(call: Call, capability: tuple[int, int]) -> bool:
    query, key, value, *_ = call
    kinds = (*_HALVES, torch.float32) if capability[0] >= 8 else (torch.float16, torch.float32)
    # Before capability 8.0 tensor cores support only 16-bit floats.
    aligned = _ROW // query.dtype.itemsize if capability[0] >= 8 or query.dtype in _HALVES else 1
    same = query.shape[-1] == key.shape[-1]
    heads = same and query.shape[-1] % aligned == 0 and value.shape[-1] % aligned == 0
    return query.dtype in kinds and heads and _is_between(capability, (5, 0)) and _fused(call, single=False)
