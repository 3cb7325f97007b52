"""Norms of the network in one pass: torch's operators, or kernels of our own in Triton where that is chosen.

The kernels are operators of torch (`torch.ops.multitalk`), so that fake tensors and whatever counts operations see
them. They have no gradients, and torch.compile would not look inside: then torch's operators run, which it fuses
itself.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_LIBRARY: Any = torch.library.Library("multitalk", "DEF")  # type: ignore[no-untyped-call]
_LIBRARY.define("layer_norm(Tensor x, Tensor weight, Tensor bias, float eps, ScalarType dtype) -> Tensor")
_LIBRARY.define("rms_rotate(Tensor x, Tensor? weight, Tensor? turns, int heads, float eps, ScalarType dtype) -> Tensor")
_ops: Any = torch.ops.multitalk
#: Values that a CPU activates at a time: they and what is computed of them stay in its cache.
_AT_ONCE = 2**17
#: GELU's tanh approximation is x * sigmoid(x * (_LINEAR + _CUBIC * x^2)).
_LINEAR = 2 * math.sqrt(2 / math.pi)
_CUBIC = 0.044715 * _LINEAR


def _layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    from engine.network import triton_kernels

    return triton_kernels.layer_norm(x, weight, bias, eps, dtype)


def _rms_rotate(
    x: Tensor, weight: Tensor | None, turns: Tensor | None, heads: int, eps: float, dtype: torch.dtype
) -> Tensor:
    from engine.network import triton_kernels

    return triton_kernels.rms_rotate(x, weight, turns, heads, eps, dtype)


def _alike(x: Tensor, *arguments: Any) -> Tensor:
    return torch.empty_like(x, dtype=arguments[-1], memory_format=torch.contiguous_format)


for _name, _kernel in (("layer_norm", _layer_norm), ("rms_rotate", _rms_rotate)):
    _LIBRARY.impl(_name, _kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"multitalk::{_name}", _alike, lib=_LIBRARY)


def set_fused(model: nn.Module, fused: bool) -> None:
    """Have the norms and rotations of `model` computed by our kernels, or by torch's operators."""
    for module in model.modules():
        if hasattr(module, "fused"):
            setattr(module, "fused", fused)  # noqa: B010 - modules annotate every attribute as a tensor or module


def eager() -> bool:
    """Return whether this call needs torch's operators: for gradients, or for torch.compile."""
    return torch.is_grad_enabled() or torch.compiler.is_compiling()


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype, *, fused: bool) -> Tensor:
    """Return the LayerNorm of `x` (..., D) times `weight` (D,) plus `bias` (D,), both float32, in `dtype`.

    Everything is computed in float32. `fused`: by our kernel.
    """
    if fused and not eager():
        result: Tensor = _ops.layer_norm(x, weight, bias, eps, dtype)
        return result
    return F.layer_norm(x.float(), weight.shape, weight, bias, eps).to(dtype)


def add(stream: Tensor, change: Tensor, gate: Tensor | None = None, *, into: bool = False) -> Tensor:
    """Return stream + change * gate, computed in float32, in the dtype of `stream` (B, L, D); `gate` is float32 (D,).

    `into`: without gradients the result replaces `stream`, which nothing else may use.
    """
    if eager():
        exact = stream.float()
        return (exact + change if gate is None else torch.addcmul(exact, change, gate)).to(stream.dtype)
    out = stream if into else torch.empty_like(stream)
    return torch.add(stream, change, out=out) if gate is None else torch.addcmul(stream, change, gate, out=out)


def gelu(x: Tensor) -> Tensor:
    """Return GELU with its tanh approximation of `x` (..., D); without gradients a CPU overwrites `x`."""
    if eager() or not x.is_cpu:
        return F.gelu(x, approximate="tanh")
    # torch's own kernel for a CPU takes twice as long for tanh, and writes to new memory.
    linear = torch.tensor(_LINEAR)
    for part in torch.split(x.view(-1, x.shape[-1]), max(1, _AT_ONCE // x.shape[-1])):
        exact = part.float()
        inner = torch.addcmul(linear, exact, exact, value=_CUBIC).mul_(exact)
        part.copy_(inner.sigmoid_().mul_(exact))
    return x


def rms_rotate(
    x: Tensor, weight: Tensor | None, turns: Tensor | None, heads: int, eps: float, dtype: torch.dtype
) -> Tensor:
    """Return the RMS norm of `x` (B, L, D), with the pairs of each head rotated, by our kernel, in `dtype`.

    Without `weight` (D,) nothing is normalised, without `turns` (`Rotary`) nothing is rotated.
    """
    result: Tensor = _ops.rms_rotate(x, weight, turns, heads, eps, dtype)
    return result
