"""The video autoencoder's decoder: dtypes, layouts and cuDNN's choice of kernels."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from engine.bench.device.kernels import profiled
from engine.bench.device.measure import DeviceBench, Rows, psnr
from engine.bench.device.modules import autoencoder
from engine.network.codec import WanCodec
from engine.planning.activations import decode_bytes
from engine.planning.operations import codec_work
from engine.planning.seconds import codec_seconds

Setting = Callable[[], AbstractContextManager[Any]]
#: Row as the engine decodes, whose rate is that of the plan's convolutions.
ENGINE = "float32, TF32"


def codec(bench: DeviceBench) -> Rows:
    """Decode a few frames in each way, and hold all to float32 without TF32."""
    vae = autoencoder(bench)
    engine = WanCodec(vae)
    latents = random_latents(bench)
    truth: list[Tensor] = []

    def measure(setting: Setting, decoded: Callable[[], Tensor], *, first: bool = False) -> dict[str, Any]:
        with setting():
            frames = decoded()
            if first:
                truth.append(frames)
            figures = bench.with_peak(decoded)
            against = psnr(frames, truth[0]) if truth else None
            return figures | _expected(bench, figures["seconds"]) | {"psnr_to_strict_float32": against}

    yield "float32, strict", bench.attempt(lambda: measure(strict, lambda: engine.decode(latents), first=True))
    yield (
        ENGINE,
        bench.attempt(lambda: measure(nullcontext, lambda: engine.decode(latents)) | _profile(bench, engine, latents)),
    )
    yield "float32, TF32, cudnn.benchmark", bench.attempt(lambda: measure(searching, lambda: engine.decode(latents)))
    yield "bfloat16", bench.attempt(lambda: measure(nullcontext, _half(vae, latents, bench)))
    _lay_channels_last(vae)
    yield "bfloat16, channels_last_3d", bench.attempt(lambda: measure(nullcontext, _half(vae, latents, bench)))
    both = "bfloat16, channels_last_3d, cudnn.benchmark"
    yield both, bench.attempt(lambda: measure(searching, _half(vae, latents, bench)))
    _cast(vae, torch.float32)
    yield "float32, TF32, channels_last_3d", bench.attempt(lambda: measure(nullcontext, lambda: engine.decode(latents)))


def _half(vae: Any, latents: Tensor, bench: DeviceBench) -> Callable[[], Tensor]:
    _cast(vae, bench.dtype)
    return partial(decode, vae, latents, bench.dtype)


def _profile(bench: DeviceBench, engine: WanCodec, latents: Tensor) -> dict[str, Any]:
    return {"kernels": profiled(bench, lambda: engine.decode(latents))}


def random_latents(bench: DeviceBench) -> Tensor:
    """Return normalised latents of the shapes' video."""
    frames, height, width = bench.shapes.video
    return bench.noise(
        bench.shapes.configs["vae"]["z_dim"], 1 + (frames - 1) // 4, height // 8, width // 8, dtype=torch.float32
    )


def decode(vae: Any, latents: Tensor, dtype: torch.dtype) -> Tensor:
    """Decode as WanCodec does, but in `dtype`."""
    config = vae.config
    shape = (-1, 1, 1, 1)
    mean, std = (
        torch.tensor(config[name], device=latents.device).view(shape) for name in ("latents_mean", "latents_std")
    )
    pixels: Tensor = vae.decode((latents * std + mean)[None].to(dtype), return_dict=False)[0][0]
    return pixels.float().clamp(-1, 1)


def strict() -> AbstractContextManager[Any]:
    """Make cuDNN compute float32 exactly inside the block."""
    flags: Any = torch.backends.cudnn.flags
    context: AbstractContextManager[Any] = flags(enabled=True, benchmark=False, deterministic=False, allow_tf32=False)
    return context


def searching() -> AbstractContextManager[Any]:
    """Make cuDNN try its kernels inside the block and keep the fastest for each shape."""
    flags: Any = torch.backends.cudnn.flags
    context: AbstractContextManager[Any] = flags(enabled=True, benchmark=True, deterministic=False, allow_tf32=True)
    return context


def _cast(vae: Any, dtype: torch.dtype) -> None:
    for parameter in vae.parameters():
        parameter.data = parameter.data.to(dtype)


def _lay_channels_last(vae: Any) -> None:
    for parameter in vae.parameters():
        if parameter.ndim == 5:
            parameter.data = parameter.data.to(memory_format=torch.channels_last_3d)
        elif parameter.ndim == 4:
            parameter.data = parameter.data.to(memory_format=torch.channels_last)


def _expected(bench: DeviceBench, seconds: float) -> dict[str, Any]:
    config, video = bench.shapes.configs["vae"], bench.shapes.video
    operations = codec_work(config, "decoder", *video)
    return {
        "operations": operations,
        "tflops": operations / seconds / 1e12,
        "predicted_seconds": None if bench.card is None else codec_seconds(bench.card, operations),
        "predicted_bytes": decode_bytes(config, *video, device=bench.device),
    }
