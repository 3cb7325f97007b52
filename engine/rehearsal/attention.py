"""Which kernel torch's scaled_dot_product_attention takes on a CUDA device, and what it makes for it.

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
#: Bytes of a row's multiple that tensor cores take.
_ROW = 16
#: The multiple of a head that flash attention is given, and of a mask's rows that the efficient kernel is given.
_HEAD = _MASK = 8
_aten: Any = torch.ops.aten


class Call(NamedTuple):
    """What is to be attended to: (B, H, L, D) tensors."""

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
    """Call the operator of `kernel`, whose rules for fake tensors torch has; each allocates as the real one does."""
    query, key, value, mask, causal = call
    width = value.shape[-1]
    kept: dict[str, Any] = {} if scale is None else {"scale": scale}
    if mask is not None and mask.dtype == torch.bool and kernel != "flash":
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(mask.logical_not(), float("-inf"))
    if kernel == "flash":
        kept = {"scale": query.shape[-1] ** -0.5 if scale is None else scale}
        query, key, value = map(_whole_rows, (query, key, value))
        found = _aten._scaled_dot_product_flash_attention(query, key, value, 0.0, causal, **kept)
    elif kernel == "cudnn":
        found = _aten._scaled_dot_product_cudnn_attention(query, key, value, mask, False, 0.0, causal, False, **kept)
    elif kernel == "efficient":
        mask = None if mask is None else _whole_mask(mask, query, key)
        found = _aten._scaled_dot_product_efficient_attention(query, key, value, mask, False, 0.0, causal, **kept)
    else:
        found = _aten._scaled_dot_product_attention_math(query, key, value, mask, 0.0, causal, None, **kept)
    output: Tensor = found[0]
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
    """Say whether a kernel that is no sum of products takes these: rows one after the other, heads one by one.

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
    # Before 8.0 tensor cores take halves alone.
    aligned = _ROW // query.dtype.itemsize if capability[0] >= 8 or query.dtype in _HALVES else 1
    same = query.shape[-1] == key.shape[-1]
    heads = same and query.shape[-1] % aligned == 0 and value.shape[-1] % aligned == 0
    return query.dtype in kinds and heads and _is_between(capability, (5, 0)) and _fused(call, single=False)
