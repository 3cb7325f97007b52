"""The autoencoder on a CPU: the numbers of diffusers' own, in less work."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_folder import build_vae
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from engine.network import codec_cpu
from engine.network.codec import WanCodec
from engine.planning import activations


@pytest.fixture(scope="module")
def codec() -> WanCodec:
    return WanCodec(build_vae())


@pytest.fixture(scope="module")
def plain() -> Any:
    return build_vae()


def video(frames: int, moving: int, seed: int = 0) -> Tensor:
    """Return pixels (3, frames, 16, 24): `moving` random frames, then grey."""
    pixels = torch.rand(3, frames, 16, 24, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    pixels[:, moving:] = 0
    return pixels


@torch.no_grad()
def encoded(codec: WanCodec, plain: Any, pixels: Tensor) -> Tensor:
    latents: Tensor = (plain.encode(pixels[None]).latent_dist.mode()[0] - codec._mean) / codec._std
    return latents


@pytest.mark.parametrize(("frames", "moving"), [(1, 1), (5, 1), (5, 5), (41, 0), (41, 1), (41, 2), (41, 9), (41, 41)])
def test_encoding_gives_the_latents_of_diffusers(frames: int, moving: int, codec: WanCodec, plain: Any) -> None:
    pixels = video(frames, moving)

    torch.testing.assert_close(codec.encode(pixels), encoded(codec, plain, pixels), atol=1e-5, rtol=1e-5)


def test_a_picture_between_still_frames_is_seen(codec: WanCodec, plain: Any) -> None:
    pixels = video(45, 1)
    for frame in (25, 34):  # the first of a chunk, and one inside
        pixels[:, frame] = video(1, 1, seed=frame)[:, 0]

    torch.testing.assert_close(codec.encode(pixels), encoded(codec, plain, pixels), atol=1e-5, rtol=1e-5)


def test_still_frames_are_not_computed_again(codec: WanCodec) -> None:
    def operations(moving: int) -> int:
        with FlopCounterMode(display=False) as counter:
            codec.encode(video(81, moving))
        return int(counter.get_total_flops())

    assert operations(1) < 0.55 * operations(81)


@pytest.mark.parametrize("chunk", [1, 2**14, 2**30])
def test_any_number_of_latents_is_decoded_at_a_time(
    chunk: int, codec: WanCodec, plain: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codec_cpu, "_CHUNK", chunk)
    latents = torch.randn(16, 8, 2, 3, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        raw = latents * codec._std + codec._mean
        expected = plain.decode(raw[None]).sample[0]

    torch.testing.assert_close(codec.decode(latents), expected, atol=1e-5, rtol=1e-5)


def test_large_pictures_are_decoded_one_latent_at_a_time() -> None:
    assert codec_cpu.latents_at_a_time(96, 480, 832) == 1
    assert codec_cpu._CHUNK == activations.TOGETHER


def test_tiles_give_the_pictures_of_diffusers(plain: Any) -> None:
    codec = WanCodec(build_vae())
    latents = torch.randn(16, 3, 6, 4, generator=torch.Generator().manual_seed(1))
    sides = {"tile_sample_min_height": 32, "tile_sample_min_width": 32}
    steps = {"tile_sample_stride_height": 24, "tile_sample_stride_width": 24}
    whole = codec.decode(latents)
    codec.vae.enable_tiling(**sides, **steps)
    plain.enable_tiling(**sides, **steps)
    try:
        with torch.no_grad():
            expected = plain.decode((latents * codec._std + codec._mean)[None]).sample[0]
    finally:
        plain.use_tiling = False

    assert not torch.allclose(codec.decode(latents), whole, atol=1e-4)
    torch.testing.assert_close(codec.decode(latents), expected, atol=1e-5, rtol=1e-5)
