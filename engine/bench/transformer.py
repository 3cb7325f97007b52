"""Compare one forward of the network with only its matrix products and attention calls."""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.bench.family import network
from engine.errors import RequestError
from engine.network.precision import cast_model

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Call = Callable[[], Tensor]
#: Bytes of a tensor just below the largest that glibc takes from its heap, 32 MiB.
_LARGE = 31 * 2**20


def run(
    *,
    dim: int = 512,
    ffn_dim: int = 1376,
    heads: int = 8,
    layers: int = 4,
    grid: tuple[int, int, int] = (9, 16, 16),
    speakers: int = 2,
    dtype: str = "float32",
    threads: int = 2,
    runs: int = 15,
    seed: int = 0,
) -> dict[str, Any]:
    """Time one forward and its lower bound, and return the figures for the JSON output.

    `grid` is tokens in (time, rows, columns). The bound is the sum of every linear layer (with bias), the patch
    convolution and every fused attention call of the same shapes, dtypes and layout, and nothing else: no norms, no
    rotations, no residuals. Conditions are embedded once, outside of both. Forward and bound run in turn; `ratio` is
    the median over pairs, which temporary load on the machine does not change. Weights are random. Raises RequestError
    for invalid sizes.
    """
    if dtype not in _DTYPES:
        raise RequestError(f"no dtype named {dtype!r}", field="dtype", hint=f"choose {' or '.join(_DTYPES)}")
    if dim % heads:
        raise RequestError(f"{dim} channels cannot be divided into {heads} heads", field="heads")
    if runs < 1 or speakers < 1 or layers < 1:
        raise RequestError("runs, speakers and layers start at 1", field="runs")
    # The C library then gives no memory of tensors back to the system, which would be fetched anew page by page. In a
    # process that makes videos it is the same, since their frames are larger.
    torch.empty(_LARGE, dtype=torch.uint8)
    with _threads(threads), torch.no_grad():
        random = torch.Generator().manual_seed(seed)
        model = build_model(dim, ffn_dim, heads, layers, _DTYPES[dtype], random)
        latents, timestep, conditions = build_inputs(model, grid, speakers, random)
        calls = list(bare_calls(model, latents, conditions))

        def forward() -> None:
            model(latents, timestep, conditions=conditions)

        def bound() -> None:
            for call in calls:
                call()

        forward_seconds, bound_seconds = _interleave(forward, bound, runs)
    ratios = [mine / bare for mine, bare in zip(forward_seconds, bound_seconds, strict=True)]
    return {
        "bench": "transformer",
        "shape": {
            "dim": dim,
            "ffn_dim": ffn_dim,
            "heads": heads,
            "layers": layers,
            "grid": list(grid),
            "tokens": grid[0] * grid[1] * grid[2],
            "text_tokens": model.config.text_len,
            "image_tokens": model.config.image_tokens,
            "audio_tokens_per_frame": conditions.audio.shape[1],
            "speakers": speakers,
        },
        "dtype": dtype,
        "threads": threads,
        "runs": runs,
        "torch": torch.__version__,
        "conditions": "embedded once, outside the timed forward",
        "forward_seconds": statistics.median(forward_seconds),
        "bound_seconds": statistics.median(bound_seconds),
        "bound_calls": len(calls),
        "ratio": statistics.median(ratios),
        "peak_memory_bytes": _peak_memory(),
    }


def bare_calls(model: Any, latents: Tensor, conditions: Any) -> Iterator[Call]:
    """Yield every matrix product, convolution and attention call of one forward, on random tensors of its shapes."""
    config = model.config
    heads, width = config.num_attention_heads, config.attention_head_dim
    context, audio = conditions.context, conditions.audio
    patch = config.patch_size
    frames, height, columns = conditions.latent_shape
    frames, rows, columns = frames // patch[0], height // patch[1], columns // patch[2]
    per_frame, tokens, dtype = rows * columns, frames * rows * columns, context.dtype
    text, image = config.text_len, config.image_tokens

    weight, bias = model.patch_embedding.weight, model.patch_embedding.bias
    pixels = latents.to(weight.dtype)
    yield lambda: F.conv3d(pixels, weight, bias, stride=patch)
    embedder: Any = model.condition_embedder
    blocks: Iterable[Any] = model.blocks
    for layer in (embedder.time_embedder.linear_1, embedder.time_embedder.linear_2, embedder.time_proj):
        yield _linear(layer, 1)
    for block in blocks:
        self_, cross, audio_attention, ffn = block.attn1, block.attn2, block.audio_attn, block.ffn.net
        for layer in (self_.to_q, self_.to_k, self_.to_v, self_.to_out[0], cross.to_q, cross.to_out[0]):
            yield _linear(layer, tokens)
        for layer in (cross.to_k, cross.to_v):
            yield _linear(layer, text)
        for layer in (cross.add_k_proj, cross.add_v_proj):
            yield _linear(layer, image)
        for layer in (audio_attention.to_q, audio_attention.to_out, ffn[0].proj, ffn[2]):
            yield _linear(layer, tokens)
        yield _linear(audio_attention.to_kv, audio.shape[0] * audio.shape[1])
        yield _attention(1, tokens, tokens, heads, width, dtype)
        yield _attention(1, tokens, text, heads, width, dtype)
        yield _attention(1, tokens, image, heads, width, dtype)
        yield _attention(frames, per_frame, audio.shape[1], heads, width, dtype)
        if conditions.speakers is not None:
            yield _attention(1, tokens, per_frame, heads, width, conditions.speakers.values.dtype)
    yield _linear(model.proj_out, tokens)


def _linear(layer: Any, rows: int) -> Call:
    x = torch.randn(1, rows, layer.in_features).to(layer.weight.dtype)
    return lambda: F.linear(x, layer.weight, layer.bias)


def _attention(batch: int, queries: int, keys: int, heads: int, width: int, dtype: torch.dtype) -> Call:
    # In the layout of the projections' output, viewed as (batch, heads, tokens, channels).
    query, key, value = (
        torch.randn(batch, length, heads, width).to(dtype).transpose(1, 2) for length in (queries, keys, keys)
    )
    return lambda: F.scaled_dot_product_attention(query, key, value)


def build_model(dim: int, ffn_dim: int, heads: int, layers: int, dtype: torch.dtype, random: torch.Generator) -> Any:
    """Build a network of these sizes with small random weights, on the CPU."""
    model = network()(
        num_attention_heads=heads,
        attention_head_dim=dim // heads,
        ffn_dim=ffn_dim,
        num_layers=layers,
        # Inputs of the condition embedders, which are outside the measurement.
        text_dim=64,
        image_dim=64,
        audio_layers=2,
        audio_channels=32,
    )
    for parameter in model.parameters():
        parameter.data.normal_(std=0.02, generator=random)
    model.eval()
    return cast_model(model, dtype)


def build_inputs(
    model: Any, grid: tuple[int, int, int], speakers: int, random: torch.Generator
) -> tuple[Tensor, Tensor, Any]:
    """Make latents, a timestep and conditions for a `grid` of tokens (time, rows, columns), on the model's device."""
    config, device = model.config, model.patch_embedding.weight.device
    shape = (grid[0], grid[1] * config.patch_size[1], grid[2] * config.patch_size[2])
    masks = torch.zeros(speakers + 1, *shape[1:])
    for column in range(shape[2]):
        masks[column * (speakers + 1) // shape[2], :, column] = 1
    pixel_frames = 1 + config.vae_scale_temporal * (shape[0] - 1)
    windows = (speakers, pixel_frames, config.audio_window, config.audio_layers, config.audio_channels)
    conditions = model.embed_conditions(
        shape,
        torch.randn(1, config.text_len, config.text_dim, generator=random).to(device),
        torch.randn(1, config.image_tokens, config.image_dim, generator=random).to(device),
        torch.randn(windows, generator=random).to(device),
        masks.to(device),
    )
    latents = torch.randn(1, config.in_channels, *shape, generator=random).to(device)
    return latents, torch.tensor([500.0], device=device), conditions


def _interleave(first: Callable[[], None], second: Callable[[], None], runs: int) -> tuple[list[float], list[float]]:
    seconds: dict[Callable[[], None], list[float]] = {first: [], second: []}
    for warm in (first, second, first, second):
        warm()
    for index in range(runs):
        # The order alternates, so that neither always runs with the other's caches.
        for work in (first, second) if index % 2 else (second, first):
            start = time.perf_counter()
            work()
            seconds[work].append(time.perf_counter() - start)
    return seconds[first], seconds[second]


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _peak_memory() -> int:
    """Return the peak resident memory of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main(arguments: list[str] | None = None) -> int:
    """Run from a command line and print JSON."""
    parser = argparse.ArgumentParser(prog="python -m engine.bench.transformer", description=__doc__)
    parser.add_argument("--dtype", default="float32", choices=list(_DTYPES))
    for name, default in (("dim", 512), ("ffn-dim", 1376), ("heads", 8), ("layers", 4), ("speakers", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--grid", type=int, nargs=3, default=(9, 16, 16), metavar=("T", "ROWS", "COLUMNS"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=15)
    options = vars(parser.parse_args(arguments))
    options["grid"] = tuple(options["grid"])
    print(json.dumps(run(**options)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
