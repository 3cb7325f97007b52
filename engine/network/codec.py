"""Pixels <-> latents."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.data.cancel import CancelToken
from engine.errors import Cancelled, RequestError, SourceError
from engine.network import codec_cpu
from engine.network.compat import WanRMS_norm, WanUpsample, unpatchify


class LatentCodec(Protocol):
    """Converts frames to normalised latents and back."""

    #: Pixels along one side, and frames (after the first), per latent.
    spatial: int
    temporal: int
    #: Latent channels.
    channels: int

    def encode(self, pixels: Tensor, *, cancel: CancelToken | None = None) -> Tensor:
        """Encode (3, F, H, W), float32 -1 .. 1, to (channels, T, h, w), float32 with mean 0 and standard deviation 1.

        F is 4n + 1. Raises Cancelled between chunks once `cancel` is set.
        """
        ...

    def decode(self, latents: Tensor, *, cancel: CancelToken | None = None) -> Tensor:
        """Decode (channels, T, h, w) to (3, F, H, W), float32 -1 .. 1. Raises Cancelled as `encode` does."""
        ...


class WanCodec:
    """Wan's video autoencoder: encodes in float32, as the public implementation runs it, and decodes in `decode_dtype`.

    `vae` is diffusers' AutoencoderKLWan, which processes time in chunks and keeps what a chunk needs from the ones
    before; its decoder is converted. Encoding stays in float32, because a window continues from encoded frames: its
    rounding would add up from window to window, that of decoding does not (docs/codec.md has figures). Raises
    SourceError if it has no statistics of its latents.
    """

    def __init__(self, vae: Any, decode_dtype: torch.dtype = torch.float32) -> None:
        config = vae.config
        self.vae: Any = None
        self._decode_dtype = decode_dtype
        self.set_module(vae)
        self.spatial = int(config.scale_factor_spatial or 8)
        self.temporal = int(config.scale_factor_temporal or 4)
        self.channels = int(config.z_dim)
        if len(config.latents_mean) != self.channels or len(config.latents_std) != self.channels:
            raise SourceError(
                f"vae/config.json gives {len(config.latents_mean)} means and {len(config.latents_std)} "
                f"standard deviations for {self.channels} latent channels",
                field="weights",
            )
        self._mean = torch.tensor(config.latents_mean, dtype=torch.float32).view(-1, 1, 1, 1)
        self._std = torch.tensor(config.latents_std, dtype=torch.float32).view(-1, 1, 1, 1)

    def set_module(self, vae: Any) -> None:
        """Use this autoencoder (with the same config) from now on; None: none until the next call."""
        if vae is not None and vae is not self.vae:
            for module in vae.modules():
                if isinstance(module, nn.Conv3d) and module.stride == (1, 1, 1):
                    _fold_time(module)
                if isinstance(module, WanRMS_norm) and module.channel_first:
                    _sum_squares(module)
                if isinstance(module, WanUpsample):
                    _repeat_as_given(module)
            if not vae.config.is_residual:
                codec_cpu.speed_up(vae.encoder)
                codec_cpu.speed_up(vae.decoder)
        if vae is not None:
            # Each time: weights may have been read into the same network again.
            for part in (vae.decoder, vae.post_quant_conv):
                part.to(self._decode_dtype)
        self.vae = vae

    @torch.no_grad()
    def encode(self, pixels: Tensor, *, cancel: CancelToken | None = None) -> Tensor:
        """Return the normalised mean of the posterior, without sampling."""
        frames, height, width = pixels.shape[1:]
        if frames % self.temporal != 1 % self.temporal or height % self.spatial or width % self.spatial:
            raise RequestError(
                f"{frames} frames of {height} x {width} pixels cannot be divided into latents",
                field="pixels",
                hint=f"{self.temporal}n + 1 frames, sides a multiple of {self.spatial}",
            )
        _lay_channels_last(self.vae.encoder, self._device)
        with self._tidied(), _watched(self.vae.encoder, cancel, "encode"):
            latents = self.vae.encode(pixels[None].to(self._device, torch.float32)).latent_dist.mode()[0]
        normalised: Tensor = (latents - self._mean.to(latents.device)) / self._std.to(latents.device)
        return normalised

    @torch.no_grad()
    def decode(self, latents: Tensor, *, cancel: CancelToken | None = None) -> Tensor:
        """Return the frames, clipped to -1 .. 1."""
        latents = latents.to(self._device, torch.float32)
        latents = (latents * self._std.to(latents.device) + self._mean.to(latents.device)).to(self._decode_dtype)
        _lay_channels_last(self.vae.decoder, self._device)
        with self._tidied(), _watched(self.vae.decoder, cancel, "decode"):
            pixels = self._decode(latents)
        # In float32 not a copy.
        return pixels.float().clamp_(-1, 1)

    def _decode(self, latents: Tensor) -> Tensor:
        vae = self.vae
        count, rows, columns = latents.shape[1:]
        direct = latents.device.type == "cpu" and latents.dtype == torch.float32
        together = 1
        if direct and not vae.use_tiling and not vae.config.is_residual:
            height, width = rows * self.spatial, columns * self.spatial
            together = codec_cpu.latents_at_a_time(vae.config.base_dim, height, width)
        if together == 1 or count == 1:
            one_by_one: Tensor = vae.decode(latents[None], return_dict=False)[0][0]
            return one_by_one
        # As diffusers does, but several latents at a time after the first.
        vae.clear_cache()
        inputs = vae.post_quant_conv(latents[None])
        frames = 1 + self.temporal * (count - 1)
        pixels = torch.empty(3, frames, rows * self.spatial, columns * self.spatial)
        filled = 0
        for chunk in (inputs[:, :, :1], *inputs[:, :, 1:].split(together, 2)):
            some = vae.decoder(chunk, feat_cache=vae._feat_map, feat_idx=[0])
            some = (unpatchify(some, vae.config.patch_size) if vae.config.patch_size else some)[0]
            pixels[:, filled : filled + some.shape[1]] = some
            filled += some.shape[1]
            del some
        vae.clear_cache()
        return pixels

    @contextmanager
    def _tidied(self) -> Iterator[None]:
        """Release what one chunk keeps for the next, even if the last chunk is never processed."""
        try:
            yield
        except BaseException:
            self.vae.clear_cache()
            raise

    @property
    def _device(self) -> torch.device:
        parameter: nn.Parameter = next(self.vae.parameters())
        return parameter.device


#: Below this size (samples x channels x frames x rows) torch 2.x does not use oneDNN for one sample on a CPU.
_SLOW_BELOW = 20480


def _fold_time(layer: nn.Conv3d) -> None:
    """Make `layer` convolve short pieces of small pictures as a batch of frames: same sums, several times as fast.

    For one sample below `_SLOW_BELOW` torch uses its own slow convolution; its frames, each with its neighbours as
    channels, are a batch, for which torch uses oneDNN.
    """
    usual: Callable[[Tensor, Tensor, Tensor | None], Tensor] = layer._conv_forward

    def convolve(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        samples, channels, frames, rows, columns = inputs.shape
        if samples != 1 or inputs.device.type != "cpu" or inputs[:, :, :, :, 0].numel() > _SLOW_BELOW:
            return usual(inputs, weight, bias)
        taps = weight.shape[2]
        windows = inputs[0].unfold(1, taps, 1).permute(1, 0, 4, 2, 3)
        folded = windows.reshape(frames - taps + 1, channels * taps, rows, columns)
        return F.conv2d(folded, weight.flatten(1, 2), bias, padding=layer.padding[1:]).transpose(0, 1)[None]

    layer._conv_forward = convolve  # type: ignore[assignment]


def _sum_squares(layer: WanRMS_norm) -> None:
    """Make `layer` compute the channels' norm from a sum of squares: same result, on a CPU up to ten times as fast.

    torch's vector norm over a dimension other than the last reads value by value.
    """
    usual: Callable[[Tensor], Tensor] = layer.forward

    def normalise(x: Tensor) -> Tensor:
        if x.dtype == torch.bfloat16:
            return _normalise_bfloat16(layer, x)
        if x.device.type != "cpu" or x.dtype != torch.float32:
            return usual(x)
        norm = x.square().sum(dim=1, keepdim=True).sqrt().clamp_min(1e-12)
        normalised: Tensor = x / norm * (layer.gamma * layer.scale) + layer.bias
        return normalised

    layer.forward = normalise


def _normalise_bfloat16(layer: WanRMS_norm, x: Tensor) -> Tensor:
    """Normalise as `layer` does, without copies of `x` in float32: only the norm, a channel's size, is one."""
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float32)
    normalised = torch.mul(x, layer.scale / norm.clamp_(min=1e-12), out=torch.empty_like(x))
    return normalised.mul_(layer.gamma).add_(layer.bias)


def _repeat_as_given(layer: WanUpsample) -> None:
    """Make `layer` repeat pixels in their own dtype, not by way of float32: same values, a third of the memory."""
    layer.forward = nn.Upsample.forward.__get__(layer)


def _lay_channels_last(part: nn.Module, device: torch.device) -> None:
    """Store the weights of convolutions with channels last, which selects kernels of that layout.

    Tensor cores want it; otherwise cuDNN converts input and output of each convolution. Values stay the same. Weights
    that come from pinned memory lose it, so this is called before each use.
    """
    if device.type == "cpu":
        codec_cpu.lay_out(part)
    if device.type != "cuda":
        return
    for module in part.modules():
        if isinstance(module, nn.Conv3d | nn.Conv2d):
            layout = torch.channels_last_3d if isinstance(module, nn.Conv3d) else torch.channels_last
            module.weight.data = module.weight.data.contiguous(memory_format=layout)


@contextmanager
def _watched(part: nn.Module, cancel: CancelToken | None, stage: str) -> Iterator[None]:
    """Check `cancel` before each chunk: `part` runs once per chunk."""
    if cancel is None:
        yield
        return

    def check(token: CancelToken) -> Callable[..., None]:
        def look(*_: Any) -> None:
            if token.is_set():
                raise Cancelled(stage)

        return look

    handle = part.register_forward_pre_hook(check(cancel))
    try:
        yield
    finally:
        handle.remove()
