"""Wan's video autoencoder on a CPU: frames are a batch of pictures with channels last, and still frames are spared.

Computes what diffusers' modules compute, with their weights, in another order: a causal convolution is one
two-dimensional convolution for each frame of its kernel. In this layout oneDNN computes them one and a half times as
fast as convolutions over time, and up to ten times as fast where torch does not use oneDNN at all. What a layer keeps
of a chunk for the next one is written where it is needed, not concatenated and padded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.network.compat import WanAttentionBlock, WanResample, WanResidualBlock

#: Pixels times base_dim that a latent may have to be decoded together with others: about what a core's cache holds.
_CHUNK = 2**20


def speed_up(part: nn.Module) -> None:
    """Make an encoder or decoder of AutoencoderKLWan compute chunks in float32 on a CPU as this module does.

    Each call still takes a chunk of one sample (1, C, T, h, w), the first of which has one frame; a later chunk of a
    decoder may have any number of frames.
    """
    usual: Callable[..., Tensor] = part.forward

    def forward(x: Tensor, feat_cache: Any = None, feat_idx: Any = None, **options: Any) -> Tensor:
        exact = x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_grad_enabled()
        if not exact or not feat_cache or len(x) != 1:
            index = [0] if feat_idx is None else feat_idx
            return usual(x, feat_cache=feat_cache, feat_idx=index, **options)
        # The list is emptied before and after each video.
        if feat_cache[0] is None:
            feat_cache[0] = _Chunks(part)
        chunks: _Chunks = feat_cache[0]
        return chunks.add(x)

    part.forward = forward


def lay_out(part: nn.Module) -> None:
    """Store the weights of convolutions so that each frame of a kernel is a matrix with channels last."""
    for module in part.modules():
        if not isinstance(module, nn.Conv2d | nn.Conv3d) or module.weight.dtype != torch.float32:
            continue
        if isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)
        elif not _is_laid_out(module.weight):
            module.weight.data = module.weight.data.permute(2, 0, 3, 4, 1).contiguous().permute(1, 4, 0, 2, 3)


def _is_laid_out(weight: Tensor) -> bool:
    return all(tap.is_contiguous(memory_format=torch.channels_last) for tap in weight.unbind(2))


def latents_at_a_time(base: int, height: int, width: int) -> int:
    """Return how many latents are decoded to `height` x `width` pixels at a time; `base` is the config's base_dim.

    engine.planning.activations counts with the same number.
    """
    return max(1, _CHUNK // (base * height * width))


class _Chunks:
    """One video in chunks: what the causal layers of one part keep of the frames before.

    `_run`: with how many frames before it, plus one, the first frame of the current chunk is known to be equal. Where
    that is at least two, all frames of the chunk are equal, and only the first is computed.
    """

    def __init__(self, part: nn.Module) -> None:
        self._part: Any = part
        self._past: dict[nn.Module, Any] = {}
        self._frames = self._run = 1
        self._last: Tensor | None = None
        self._still = 0

    def add(self, x: Tensor) -> Tensor:
        """Return what the part computes of the next chunk (1, C, T, h, w)."""
        part: Any = self._part
        frames = x[0].transpose(0, 1)
        self._frames = len(frames)
        decodes = hasattr(part, "up_blocks")
        if not decodes:
            frames = self._look(frames)
        y = self._causal(part.conv_in, self._filled(part.conv_in, frames))
        if decodes:
            y = self._middle(part.mid_block, y)
            for block in part.up_blocks:
                for layer in (*block.resnets, *(block.upsamplers or ())):
                    y = self._layer(layer, y)
        else:
            for layer in part.down_blocks:
                y = self._layer(layer, y)
            y = self._middle(part.mid_block, y)
        y = self._causal(part.conv_out, self._activated(part.conv_out, part.norm_out, part.nonlinearity, y))
        return self._whole(y).transpose(0, 1)[None]

    def _look(self, x: Tensor) -> Tensor:
        """Return the chunk (T, C, h, w), or its first frame if all are equal to it and to the last one before."""
        equal = [
            before is not None and torch.equal(before, frame)
            for before, frame in zip((self._last, *x[:-1]), x, strict=True)
        ]
        self._run = self._still + 1 if all(equal) else 1
        for same in equal:
            self._still = self._still + 1 if same else 1
        self._last = x[-1].clone()
        return x[:1] if self._run > 1 else x

    def _whole(self, x: Tensor) -> Tensor:
        return x if len(x) == self._frames else x.expand(self._frames, -1, -1, -1)

    def _middle(self, block: Any, x: Tensor) -> Tensor:
        x = self._layer(block.resnets[0], x)
        for attention, residual in zip(block.attentions, block.resnets[1:], strict=True):
            x = self._layer(residual, x if attention is None else self._layer(attention, x))
        return x

    def _layer(self, layer: Any, x: Tensor) -> Tensor:
        if isinstance(layer, WanResidualBlock):
            return self._residual(layer, x)
        if isinstance(layer, WanAttentionBlock):
            return _attended(layer, x)
        if isinstance(layer, WanResample):
            return self._resampled(layer, x)
        raise TypeError(f"{type(layer).__name__} in an autoencoder of Wan")

    def _residual(self, block: Any, x: Tensor) -> Tensor:
        y = self._causal(block.conv1, self._activated(block.conv1, block.norm1, block.nonlinearity, x))
        y = self._causal(block.conv2, self._activated(block.conv2, block.norm2, block.nonlinearity, y))
        shortcut = block.conv_shortcut
        if isinstance(shortcut, nn.Conv3d):
            x = F.conv2d(x, shortcut.weight[:, :, 0], shortcut.bias)
        # Where convolutions begin to differ, the shortcut may still be one frame for all.
        return y.add_(x)

    def _filled(self, layer: Any, x: Tensor) -> Tensor:
        """Return frames (T, C, h, w) behind the ones that `layer` has kept, for `_causal`."""
        whole = self._room(layer, x)
        whole[-len(x) :] = x
        return whole

    def _activated(self, layer: Any, norm: Any, activation: Any, x: Tensor) -> Tensor:
        """Return normed and activated frames as `_filled` does."""
        whole = self._room(layer, x)
        new = whole[-len(x) :]
        length = torch.linalg.vector_norm(x, dim=1, keepdim=True)
        torch.mul(x, norm.scale / length.clamp_min_(1e-12), out=new)
        new.mul_(norm.gamma[:, 0])
        if isinstance(norm.bias, Tensor):
            new.add_(norm.bias[:, 0])
        if isinstance(activation, nn.SiLU):
            F.silu(new, inplace=True)
        else:
            new.copy_(activation(new))
        return whole

    def _room(self, layer: Any, x: Tensor) -> Tensor:
        before = layer.weight.shape[2] - 1
        shape = (len(x) + before, *x.shape[1:])
        return torch.empty(shape, memory_format=torch.channels_last)

    def _causal(self, layer: Any, whole: Tensor) -> Tensor:
        """Convolve frames that have room before them for those of the last chunk; keep the last ones."""
        taps = layer.weight.shape[2]
        kept = taps - 1
        # Taken out, so that its memory is free as soon as it has been copied.
        whole[:kept] = self._past.pop(layer, 0)
        count = len(whole) - kept
        if count < self._frames:
            if self._run - kept > 1:
                self._run -= kept
            else:
                whole = torch.cat([whole, whole[-1:].expand(self._frames - count, -1, -1, -1)])
                count, self._run = self._frames, 1
        else:
            self._run = max(1, self._run - kept)
        self._past[layer] = whole[-kept:].clone()
        return _taps(layer, whole, count, layer._padding[2::-2])

    def _resampled(self, layer: Any, x: Tensor) -> Tensor:
        if layer.mode == "upsample3d":
            x = self._doubled(layer.time_conv, x)
        for step in layer.resample:
            x = step(x)
        return self._halved(layer.time_conv, x) if layer.mode == "downsample3d" else x

    def _doubled(self, layer: Any, x: Tensor) -> Tensor:
        if layer not in self._past:
            # The first frame stays one, and counts as empty for the next.
            self._past[layer] = x.new_zeros(layer.weight.shape[2] - 1, *x.shape[1:])
            return x
        pair = self._causal(layer, self._filled(layer, x))
        frames, channels, height, width = x.shape
        ordered = pair.permute(0, 2, 3, 1).reshape(frames, height, width, 2, channels).permute(0, 3, 1, 2, 4)
        self._frames *= 2
        return ordered.reshape(2 * frames, height, width, channels).permute(0, 3, 1, 2)

    def _halved(self, layer: Any, x: Tensor) -> Tensor:
        past = self._past.get(layer)
        self._past[layer] = x[-1:].clone()
        if past is None:
            return x
        run, self._frames = self._run, self._frames // 2
        if len(x) == 1 and 1 < run < 4:
            x = x.expand(2 * self._frames, -1, -1, -1)
        # Two frames and the one before them become one.
        self._run = run // 2 if run > 3 else 1
        count = self._frames if self._run == 1 else 1
        whole = torch.cat([past, x if self._run == 1 else x.expand(2, -1, -1, -1)])
        return _taps(layer, whole, count, (0, 0), step=2)


def _taps(layer: nn.Conv3d, whole: Tensor, count: int, padding: Any, step: int = 1) -> Tensor:
    result: Tensor | None = None
    for index, weight in enumerate(layer.weight.unbind(2)):
        part = whole[index : index + step * count : step]
        if result is None:
            result = F.conv2d(part, weight, layer.bias, padding=padding)
        else:
            result.add_(F.conv2d(part, weight, padding=padding))
    assert result is not None
    return result


def _attended(layer: Any, x: Tensor) -> Tensor:
    frames, channels, height, width = x.shape
    length = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    normed = (x * (layer.norm.scale / length.clamp_min_(1e-12))).mul_(layer.norm.gamma)
    if isinstance(layer.norm.bias, Tensor):
        normed.add_(layer.norm.bias)
    flat = F.conv2d(normed, layer.to_qkv.weight, layer.to_qkv.bias).permute(0, 2, 3, 1).flatten(1, 2)
    queries, keys, values = flat[:, None].chunk(3, dim=-1)
    mixed = F.scaled_dot_product_attention(queries, keys, values)[:, 0]
    pictures = mixed.reshape(frames, height, width, channels).permute(0, 3, 1, 2)
    return F.conv2d(pictures, layer.proj.weight, layer.proj.bias).add_(x)
