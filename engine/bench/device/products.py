"""Matrix products of a block in every number format of the card, and its memory bandwidth."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.bench.device.machine import ask_driver
from engine.bench.device.measure import DeviceBench, Rows, Skipped
from engine.network.embeddings import rotary_grid, rotate

#: Rows that are also multiplied in float32, for comparison.
_EXACT = 256
_FP8, _FP8_MOST = torch.float8_e4m3fn, 448.0
#: Least capability (major, minor) with fp8 tensor cores.
_FP8_SINCE = (8, 9)

#: (work to time, the same including the creation of its operands or None).
Made = tuple[Callable[[], Tensor], Callable[[], Tensor] | None]


def products(bench: DeviceBench) -> Rows:
    """Products of a block's attention and feed-forward, with their error against float32."""
    shapes = bench.shapes
    frames, rows, columns = shapes.first[1]
    kinds: dict[str, Callable[[DeviceBench, Tensor, Tensor], Made]] = {
        "bfloat16": _bfloat16,
        "fp8 rows, _scaled_mm": _scaled,
        "int8 rows, _int_mm": _integers,
        "int8 weights, torchao": partial(_weights, "Int8WeightOnlyConfig"),
        "fp8 weights, torchao": partial(_weights, "Float8WeightOnlyConfig"),
    }
    for inputs, outputs in ((shapes.dim, shapes.dim), (shapes.dim, shapes.ffn_dim), (shapes.ffn_dim, shapes.dim)):
        x, weight = bench.noise(frames * rows * columns, inputs), bench.noise(outputs, inputs) / inputs**0.5
        for name, make in kinds.items():
            yield f"{inputs} to {outputs}, {name}", bench.attempt(partial(_product, bench, make, x, weight))
    yield "driver under load", bench.attempt(partial(_under_load, bench))


def _product(
    bench: DeviceBench, make: Callable[[DeviceBench, Tensor, Tensor], Made], x: Tensor, weight: Tensor
) -> dict[str, Any]:
    call, whole = make(bench, x, weight)
    truth = x[:_EXACT].float() @ weight.float().T
    error = float((call()[:_EXACT].float() - truth).norm() / truth.norm())
    seconds = bench.seconds(call)
    figures = {"rows": len(x), "seconds": seconds, **bench.rate(2 * x.numel() * len(weight), seconds)}
    # Activations are quantised to eight bits in every call of a layer.
    with_making = {} if whole is None else {"seconds_with_rounding": bench.seconds(whole)}
    return figures | with_making | {"relative_error": error}


def _bfloat16(_bench: DeviceBench, x: Tensor, weight: Tensor) -> Made:
    return lambda: F.linear(x, weight), None


def _scaled(bench: DeviceBench, x: Tensor, weight: Tensor) -> Made:
    if bench.cuda and torch.cuda.get_device_capability() < _FP8_SINCE:
        raise Skipped("fp8 tensor cores need compute capability 8.9")

    def rounded(values: Tensor) -> tuple[Tensor, Tensor]:
        scale = values.abs().amax(dim=1, keepdim=True).float() / _FP8_MOST
        return (values / scale).to(_FP8), scale

    small, scale = rounded(x)
    weight_values, weight_scale = rounded(weight)

    def multiply(small: Tensor, scale: Tensor) -> Tensor:
        product: Tensor = torch._scaled_mm(
            small,
            weight_values.T,
            scale_a=scale,
            scale_b=weight_scale.T,
            out_dtype=bench.dtype,
            use_fast_accum=bench.cuda,
        )
        return product

    return lambda: multiply(small, scale), lambda: multiply(*rounded(x))


def _integers(_bench: DeviceBench, x: Tensor, weight: Tensor) -> Made:
    def rounded(values: Tensor) -> tuple[Tensor, Tensor]:
        scale = values.abs().amax(dim=1, keepdim=True).float() / 127
        return (values / scale).round().to(torch.int8), scale

    small, scale = rounded(x)
    weight_values, weight_scale = rounded(weight)

    def multiply(small: Tensor, scale: Tensor) -> Tensor:
        return (torch._int_mm(small, weight_values.T) * scale * weight_scale.T).to(x.dtype)

    return lambda: multiply(small, scale), lambda: multiply(*rounded(x))


def _weights(config: str, bench: DeviceBench, x: Tensor, weight: Tensor) -> Made:
    import torchao.quantization as torchao

    layer = nn.Sequential(nn.Linear(weight.shape[1], weight.shape[0], bias=False, device=bench.device, dtype=x.dtype))
    layer.load_state_dict({"0.weight": weight})
    torchao.quantize_(layer, getattr(torchao, config)(set_inductor_config=False))
    return lambda: layer(x), None


def _under_load(bench: DeviceBench) -> dict[str, Any]:
    bench.need_cuda()
    x = bench.noise(8192, 8192)
    # About a second of work is running while the driver is queried.
    once = bench.once(lambda: x @ x)
    for _ in range(int(1 / max(once, 1e-4))):
        x @ x
    figures = ask_driver()
    bench.wait()
    return figures


# --- memory -----------------------------------------------------------------------------------------------------------


def bandwidth(bench: DeviceBench) -> Rows:
    """Element-wise work of a block: bytes read and written per second."""
    shapes = bench.shapes
    grid = shapes.first[1]
    tokens = grid[0] * grid[1] * grid[2]
    exact = tokens * shapes.dim * 4
    stream, other = (bench.noise(1, tokens, shapes.dim, dtype=torch.float32) for _ in range(2))
    heads, into = (tensor.view(1, tokens, shapes.heads, shapes.head_dim) for tensor in (stream, other))
    scale, half = bench.noise(shapes.dim, dtype=torch.float32), bench.noise(1, tokens, shapes.ffn_dim)
    works: dict[str, tuple[int, Callable[[], Any]]] = {
        "copy": (2 * exact, lambda: other.copy_(stream)),
        "cast to bfloat16": (exact + exact // 2, lambda: stream.to(bench.dtype)),
        "layer_norm": (2 * exact, lambda: F.layer_norm(stream, (shapes.dim,), scale, scale)),
        "addcmul": (3 * exact, lambda: torch.addcmul(stream, other, scale)),
        "gelu": (2 * half.nbytes, lambda: F.gelu(half, approximate="tanh")),
        # All except the last value of each head: not aligned for vector loads.
        "addcmul_ on [..., :-1]": (3 * exact, lambda: into[..., :-1].addcmul_(heads[..., 1:], heads[..., :1])),
    }
    for name, (moved, work) in works.items():
        yield name, bench.attempt(partial(_moved, bench, moved, work))
    yield "rotate", bench.attempt(partial(_rotate, bench, heads))


def _rotate(bench: DeviceBench, heads: Tensor) -> dict[str, Any]:
    table = rotary_grid(*bench.shapes.first[1], bench.shapes.head_dim, heads.device)
    # The least bytes it must read and write: its input and its output.
    return _moved(bench, 2 * heads.nbytes, lambda: rotate(heads, table, torch.float32))


def _moved(bench: DeviceBench, moved: int, work: Callable[[], Any]) -> dict[str, Any]:
    seconds = bench.seconds(work)
    rate = moved / seconds / 1e9
    share = None if bench.card is None else rate / bench.card.bandwidth_gb
    return {"bytes": moved, "seconds": seconds, "gb_per_second": rate, "share": share}
