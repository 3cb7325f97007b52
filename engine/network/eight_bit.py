"""Linear layers in 8 bits: weights have one scale per row, activations are quantised row by row in each call.

y = (q_x q_w^T) * s_x * s_w + b with q_x = x / s_x and s_x = max|x| / most of its row. int8 products are summed in
32-bit integers (`torch._int_mm`), float8 ones in float32 (`torch._scaled_mm`, whose kernel applies the scales, too).

Two passes are kernels of our own on a GPU: quantising, and scaling the sums of int8. torch's operators would read and
write float32 copies: 21 bytes per activation instead of 3, and 34 per sum instead of 10. `torch.compile` fuses torch's
operators itself. Source of the scheme: torchao, Int8Tensor and Float8Tensor with PerRow. We do not use its products:
before each, its eager code prints the activations to a text (torchao/kernel/intmm.py, safe_int_mm), which waits for
the GPU.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

#: Number formats of the products, and their largest value.
MOST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
#: Rows that are multiplied at a time: bounds the memory for 32-bit sums.
ROWS = 8192
#: The least rows of a product of int8 on CUDA, which needs more than 16 (aten/src/ATen/native/cuda/Blas.cpp).
_LEAST = 32
#: Scale of a row of zeros.
_TINY = 1e-12


def linear(x: Tensor, data: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """Multiply (..., K) with a weight (N, K), int8 or float8_e4m3fn, times its `scale` (N, 1), float32.

    Returns (..., N) in the dtype of `x`. On CUDA both sides of the weight must be multiples of 16.
    """
    rows = x.reshape(-1, x.shape[-1])
    if data.dtype != torch.int8:
        out = _multiply_floats(rows, data, scale, bias)
    elif len(rows) <= ROWS or torch.compiler.is_compiling():
        out = _multiply_integers(rows, data, scale, bias, None)
    else:
        out = rows.new_empty(len(rows), len(data))
        for begin in range(0, len(rows), ROWS):
            some = slice(begin, begin + ROWS)
            _multiply_integers(rows[some], data, scale, bias, out[some])
    return out.reshape(*x.shape[:-1], len(data))


def quantise_rows(rows: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Quantise (M, K) to `dtype`, a key of MOST; return the values (M, K) and their scales (M, 1), float32.

    A row with NaN or infinity has a scale that is not finite, and so has its product.
    """
    if _is_fused(rows):
        values, scales = torch.ops.multitalk.quantise_rows(rows, dtype)
        return values, scales
    largest: Tensor = torch.linalg.vector_norm(rows, torch.inf, dim=1, keepdim=True, dtype=torch.float32)
    scale = (largest / MOST[dtype]).clamp_min(_TINY)
    if torch.compiler.is_compiling() or len(rows) <= ROWS:
        return _divide(rows, scale, dtype), scale
    small = rows.new_empty(rows.shape, dtype=dtype)
    for begin in range(0, len(rows), ROWS):
        some = slice(begin, begin + ROWS)
        small[some] = _divide(rows[some], scale[some], dtype)
    return small, scale


def _divide(rows: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    values = rows / scale
    return (values.round_() if dtype == torch.int8 else values).to(dtype)


def _multiply_floats(rows: Tensor, data: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    small, scales = quantise_rows(rows, data.dtype)
    # The kernel adds only a bias of 16 bits.
    later = bias if rows.dtype == torch.float32 else None
    out: Tensor = torch._scaled_mm(
        small,
        data.t(),
        scale_a=scales,
        scale_b=scale.t(),
        bias=None if later is not None else bias,
        out_dtype=rows.dtype,
        use_fast_accum=rows.is_cuda,
    )
    return out if later is None else out.add_(later)


def _multiply_integers(rows: Tensor, data: Tensor, scale: Tensor, bias: Tensor | None, place: Tensor | None) -> Tensor:
    """Return the product, in `place` if it is given."""
    small, scales = quantise_rows(rows, torch.int8)
    if small.is_cuda and len(small) < _LEAST:
        small = F.pad(small, (0, 0, 0, _LEAST - len(small)))
    sums = torch._int_mm(small, data.t())[: len(rows)]
    if _is_fused(rows):
        out = rows.new_empty(len(rows), len(data)) if place is None else place
        torch.ops.multitalk.scale_sums(sums, scales, scale, bias, out)
        return out
    total = sums * scales
    total.mul_(scale.t())
    if bias is not None:
        total.add_(bias)
    return total.to(rows.dtype) if place is None else place.copy_(total)


# --- kernels on a GPU -------------------------------------------------------------------------------------------------


@cache
def has_triton() -> bool:
    """Return whether Triton is installed, as it is with every CUDA build of torch for Linux."""
    return find_spec("triton") is not None


def _is_fused(rows: Tensor) -> bool:
    return rows.is_cuda and has_triton() and not torch.compiler.is_compiling()


torch.library.define("multitalk::quantise_rows", "(Tensor rows, ScalarType dtype) -> (Tensor, Tensor)")
torch.library.define(
    "multitalk::scale_sums", "(Tensor sums, Tensor rows, Tensor columns, Tensor? bias, Tensor(a!) out) -> ()"
)


@torch.library.impl("multitalk::quantise_rows", "CUDA")
def _quantise_rows_cuda(rows: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    from engine.network.eight_bit_kernels import quantise

    return quantise(rows, dtype, MOST[dtype], _TINY)


@torch.library.impl("multitalk::scale_sums", "CUDA")
def _scale_sums_cuda(sums: Tensor, rows: Tensor, columns: Tensor, bias: Tensor | None, out: Tensor) -> None:
    from engine.network.eight_bit_kernels import rescale

    rescale(sums, rows, columns, bias, out)


@torch.library.register_fake("multitalk::quantise_rows")  # type: ignore[untyped-decorator]
def _quantise_rows_fake(rows: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return rows.new_empty(rows.shape, dtype=dtype), rows.new_empty(len(rows), 1, dtype=torch.float32)


@torch.library.register_fake("multitalk::scale_sums")  # type: ignore[untyped-decorator]
def _scale_sums_fake(*_: Any) -> None:
    return None
