"""Triton kernels for `engine.network.eight_bit`; imported only on a GPU, and by Triton's interpreter in tests."""

from __future__ import annotations

from typing import Any

import torch
import triton  # type: ignore[import-not-found,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,unused-ignore]
from torch import Tensor

#: 1.5 * 2**23: added to a float32 below 2**22 and subtracted again, it rounds to the nearest even integer.
_ROUNDING = 12582912.0
#: Columns of a sum that one program scales.
_COLUMNS = 1024


def quantise(rows: Tensor, dtype: torch.dtype, most: float, tiny: float) -> tuple[Tensor, Tensor]:
    """See `eight_bit.quantise_rows`: one program per row, which reads it once."""
    rows = rows if rows.stride(1) == 1 else rows.contiguous()
    count, width = rows.shape
    values = torch.empty((count, width), dtype=dtype, device=rows.device)
    scales = torch.empty((count, 1), dtype=torch.float32, device=rows.device)
    block = triton.next_power_of_2(width)
    _quantise[(count,)](
        rows,
        values,
        scales,
        rows.stride(0),
        width,
        most=most,
        tiny=tiny,
        rounding=_ROUNDING,
        integers=dtype == torch.int8,
        block=block,
        num_warps=4 if block <= 4096 else 8,
    )
    return values, scales


def rescale(sums: Tensor, rows: Tensor, columns: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """Write sums * rows * columns^T + bias, (M, N), to `out`, which has contiguous rows."""
    count, width = sums.shape
    _rescale[(count, triton.cdiv(width, _COLUMNS))](
        sums,
        rows,
        columns,
        # Any tensor: it is not read without a bias.
        columns if bias is None else bias,
        out,
        sums.stride(0),
        out.stride(0),
        width,
        biased=bias is not None,
        block=_COLUMNS,
    )


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _quantise(
    rows: Any,
    values: Any,
    scales: Any,
    stride: Any,
    width: Any,
    most: tl.constexpr,
    tiny: tl.constexpr,
    rounding: tl.constexpr,
    integers: tl.constexpr,
    block: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, block)
    inside = columns < width
    given = tl.load(rows + row * stride + columns, mask=inside, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(given), axis=0) / most, tiny)
    small = given / scale
    if integers:
        small = (small + rounding) - rounding
    tl.store(values + row * width + columns, small.to(values.dtype.element_ty), mask=inside)
    tl.store(scales + row, scale)


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _rescale(
    sums: Any,
    rows: Any,
    columns: Any,
    bias: Any,
    out: Any,
    stride: Any,
    out_stride: Any,
    width: Any,
    biased: tl.constexpr,
    block: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * block + tl.arange(0, block)
    inside = place < width
    total = tl.load(sums + row * stride + place, mask=inside, other=0).to(tl.float32)
    total = total * tl.load(rows + row) * tl.load(columns + place, mask=inside, other=0.0)
    if biased:
        total += tl.load(bias + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * out_stride + place, total.to(out.dtype.element_ty), mask=inside)
