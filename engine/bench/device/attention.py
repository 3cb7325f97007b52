"""Attention in the shapes of the network and the autoencoder: torch's own choice, and each kernel forced."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from engine.bench.device.kernels import longest_kernel
from engine.bench.device.measure import DeviceBench, Row, Rows, largest_difference
from engine.machine.kernels import KERNELS
from engine.network.attention import class_scores
from engine.network.compat import AttentionBackendName, dispatch_attention_fn
from engine.network.speakers import prepare_speakers
from engine.plugin.manager import installed

#: "native" is torch's own choice. On a CPU torch has only flash and the plain computation.
FORCED = {
    "native": None,
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
#: Queries whose attention is also computed in float32 step by step, to compare the kernels with.
_EXACT = 64

Call = Callable[[], Tensor]


def attention(bench: DeviceBench) -> Rows:
    """Self-attention of the network with torch's kernels and with every installed backend."""
    shapes = bench.shapes
    backends = installed().attention
    for length in shapes.lengths:
        inputs = tuple(bench.noise(1, length, shapes.heads, shapes.head_dim) for _ in range(3))
        exact = _attend_exactly(*inputs)
        operations = 4 * length * length * shapes.dim
        yield from _forced(bench, f"{length}", partial(_attend, "native", *inputs), operations, exact)
        # Not kernels of the Hub, which would be downloaded, and not sparse attention, whose result is another.
        for name in ("auto", *(kernel.name for kernel in KERNELS if not kernel.hub)):

            def measure(name: str = name, inputs: tuple[Tensor, ...] = inputs, exact: Tensor = exact) -> dict[str, Any]:
                kernel = backends.build_default(name).resolve(bench.device)
                figures = _figures(
                    bench, partial(_attend, kernel, *inputs), 4 * inputs[0].shape[1] ** 2 * shapes.dim, exact
                )
                return {"resolved": kernel} | figures

            yield f"{length}, attention={name}", bench.attempt(measure)


def other_attention(bench: DeviceBench) -> Rows:
    """The map of who attends to whom, attention to text, picture and voices, and the autoencoder's."""
    shapes = bench.shapes
    heads, head_dim = shapes.heads, shapes.head_dim
    name, (frames, rows, columns) = shapes.first
    tokens, per_frame = frames * rows * columns, rows * columns
    config = shapes.configs["transformer"]

    yield from _class_scores(bench, name, tokens, per_frame)
    _, height, width = shapes.video
    picture_tokens = (height // 8) * (width // 8)
    vae_dim = shapes.configs["vae"]["base_dim"] * 4
    audio_tokens = 2 * config["audio_tokens"]
    for row, batch, queries, keys, kind in (
        (f"picture, {config['image_tokens']} keys", 1, tokens, config["image_tokens"], (heads, head_dim, bench.dtype)),
        (f"text, {config['text_len']} keys", 1, tokens, config["text_len"], (heads, head_dim, bench.dtype)),
        (f"voices, {audio_tokens} keys", frames, per_frame, audio_tokens, (heads, head_dim, bench.dtype)),
        (f"autoencoder, {picture_tokens} keys", 1, picture_tokens, picture_tokens, (1, vae_dim, torch.float32)),
    ):
        count, channels, dtype = kind
        query = bench.noise(batch, queries, count, channels, dtype=dtype)
        key, value = (bench.noise(batch, keys, count, channels, dtype=dtype) for _ in range(2))
        operations = 4 * batch * queries * keys * count * channels
        yield from _forced(
            bench, row, partial(_attend, "native", query, key, value), operations, _attend_exactly(query, key, value)
        )


def _class_scores(bench: DeviceBench, name: str, tokens: int, per_frame: int) -> Iterator[Row]:
    shapes, config = bench.shapes, bench.shapes.configs["transformer"]
    query, key = (bench.noise(1, tokens, shapes.heads, shapes.head_dim, dtype=torch.float32) for _ in range(2))
    halves = torch.arange(per_frame, device=bench.device) * 2 // per_frame
    masks = torch.stack([halves == 0, halves == 1, torch.zeros_like(halves, dtype=torch.bool)])
    # In the dtype in which the network computes them on this device.
    dtype = bench.dtype if bench.cuda else torch.float32
    speakers = prepare_speakers(masks, config["audio_tokens"], shapes.head_dim, 24, 4, dtype)
    with sdpa_kernel(SDPBackend.MATH):
        precise = speakers._replace(values=speakers.values.float())
        exact = class_scores(query[:, :_EXACT], key, precise).T[None]
    operations = 4 * tokens * per_frame * shapes.dim

    def call() -> Tensor:
        return class_scores(query, key, speakers).T[None]

    yield from _forced(bench, f"map of speakers, {name}", call, operations, exact)


def _forced(bench: DeviceBench, name: str, call: Call, operations: int, exact: Tensor) -> Iterator[Row]:
    """Yield a row for torch's choice and for each kernel by force."""
    for forced, backend in FORCED.items():

        def measure(forced: str = forced, backend: SDPBackend | None = backend) -> dict[str, Any]:
            if forced in ("cudnn", "efficient"):
                bench.need_cuda()
            context: AbstractContextManager[Any] = nullcontext() if backend is None else sdpa_kernel(backend)
            with context:
                return _figures(bench, call, operations, exact)

        yield f"{name}, {forced}", bench.attempt(measure)


def _figures(bench: DeviceBench, call: Call, operations: int, exact: Tensor) -> dict[str, Any]:
    difference = largest_difference(call()[:, : exact.shape[1]], exact)
    seconds = bench.seconds(call)
    return {
        "seconds": seconds,
        **bench.rate(operations, seconds),
        "largest_difference": difference,
        "kernel": longest_kernel(bench, call),
    }


def _attend(kernel: str, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    attended: Tensor = dispatch_attention_fn(query, key, value, backend=AttentionBackendName(kernel))
    return attended


def _attend_exactly(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of the first queries in float32: (B, at most _EXACT, H, D)."""
    with sdpa_kernel(SDPBackend.MATH):
        few, keys, values = (tensor.float().transpose(1, 2) for tensor in (query[:, :_EXACT], key, value))
        return F.scaled_dot_product_attention(few, keys, values).transpose(1, 2)
