"""Triton kernels: a norm with its modulation, and an RMS norm with its rotation, in one pass each.

A program has one token: it reads the token's channels once, computes in float32 and writes the result once, in the
dtype that the next layer reads. `engine.network.fused` has the same in torch's operators, which read and write the
tokens two to five times.
"""

# Triton finds its own types in annotations, which must be objects at import: no `from __future__ import annotations`.
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit  # type: ignore[untyped-decorator]
def _layer_norm(x, weight, bias, out, eps, width: tl.constexpr, block: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64) * width
    channels = tl.arange(0, block)
    inside = channels < width
    values = tl.load(x + row + channels, mask=inside, other=0.0).to(tl.float32)
    centred = tl.where(inside, values - tl.sum(values, axis=0) / width, 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, axis=0) / width + eps)
    factor = tl.load(weight + channels, mask=inside, other=0.0).to(tl.float32)
    summand = tl.load(bias + channels, mask=inside, other=0.0).to(tl.float32)
    result = centred * scale * factor + summand
    tl.store(out + row + channels, result.to(out.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _rms_rotate(  # type: ignore[no-untyped-def]
    x,
    weight,
    turns,
    out,
    eps,
    rows,
    width: tl.constexpr,
    block: tl.constexpr,
    pairs: tl.constexpr,
    normed: tl.constexpr,
    rotated: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    row = token * width
    channels = tl.arange(0, block)
    inside = channels < width
    values = tl.load(x + row + channels, mask=inside, other=0.0).to(tl.float32)
    if normed:
        scale = tl.rsqrt(tl.sum(values * values, axis=0) / width + eps)
        values = values * scale * tl.load(weight + channels, mask=inside, other=0.0).to(tl.float32)
    if rotated:
        first, second = tl.split(tl.reshape(values, (block // 2, 2)))
        # All heads of a token have the same table.
        turn = turns + (token % rows) * (2 * pairs) + 2 * (tl.arange(0, block // 2) % pairs)
        cos = tl.load(turn)
        sin = tl.load(turn + 1)
        values = tl.interleave(first * cos - second * sin, second * cos + first * sin)
    tl.store(out + row + channels, values.to(out.dtype.element_ty), mask=inside)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """Return the LayerNorm of `x` (..., D) times `weight` (D,) plus `bias` (D,), in `dtype`."""
    x, out, grid, launch = _prepare(x, dtype)
    with _on(x):
        _layer_norm[grid](x, weight, bias, out, eps, **launch)
    return out


def rms_rotate(
    x: Tensor, weight: Tensor | None, turns: Tensor | None, heads: int, eps: float, dtype: torch.dtype
) -> Tensor:
    """Return the RMS norm of `x` (B, L, D) times `weight` (D,), with pairs rotated by `turns`, in `dtype`.

    Without `weight` nothing is normalised, without `turns` (1, L, 1, D / heads / 2, 2), float32, nothing is rotated.
    """
    x, out, grid, launch = _prepare(x, dtype)
    pairs = x.shape[-1] // heads // 2
    rows = 1 if turns is None else turns.shape[1]
    with _on(x):
        _rms_rotate[grid](
            x,
            # A pointer that the kernel does not use.
            x if weight is None else weight,
            x if turns is None else turns.contiguous(),
            out,
            eps,
            rows,
            pairs=pairs,
            normed=weight is not None,
            rotated=turns is not None,
            **launch,
        )
    return out


def _prepare(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, tuple[int], dict[str, Any]]:
    x, width = x.contiguous(), x.shape[-1]
    block = triton.next_power_of_2(width)
    # 16 values a thread.
    launch = {"width": width, "block": block, "num_warps": max(1, min(16, block // 512))}
    return x, torch.empty_like(x, dtype=dtype), (x.numel() // width,), launch


def _on(x: Tensor) -> Any:
    # Triton launches on the current device.
    return torch.cuda.device(x.device if x.is_cuda else -1)
