"""Voice -> audio features, and the five-frame windows that the network gets."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.data.cancel import CancelToken
from engine.errors import Cancelled

#: Samples per second of every voice.
SAMPLE_RATE = 16_000
#: Slots of one window; the middle one is the frame itself.
WINDOW = 5


def audio_frames(samples: int, fps: float) -> int:
    """Return how many feature frames a voice of `samples` samples has at `fps`; at least one."""
    # A frame that begins within the last microsecond comes from a rounding error of the length.
    return max(1, int(samples * fps / SAMPLE_RATE + 1e-6))


class AudioEncoder:
    """wav2vec 2.0 (transformers' Wav2Vec2Model) at the frame rate of the video; float32 on the CPU.

    `chunk` is how many seconds of voice the convolutions process at once: without chunks, each minute would take 1 GB.
    Results of longer voices are equal except for rounding.
    """

    def __init__(self, model: Any, chunk: float = 10.0) -> None:
        config = model.config
        self.model = model
        self._field = _receptive_field(config.conv_kernel, config.conv_stride)
        self._stride = math.prod(config.conv_stride)
        self._chunk = max(1, int(chunk * SAMPLE_RATE) // self._stride)

    @torch.no_grad()
    def encode(self, voice: Tensor, frames: int, *, cancel: CancelToken | None = None) -> Tensor:
        """Return features of a voice, (samples,) float32 mono 16 kHz: (frames, layers, channels), float32.

        The voice is normalised to mean 0 and variance 1. The convolutions' output is interpolated to `frames` before
        the encoder, so that positions and attention correspond to video frames; then every layer's output is kept,
        without the input of the first. Raises Cancelled between chunks and layers once `cancel` is set.
        """
        if voice.shape[0] < self._field:
            voice = F.pad(voice, (0, self._field - voice.shape[0]))
        voice = voice.to(next(self.model.parameters()).device, torch.float32)
        normalised = ((voice - voice.mean()) / torch.sqrt(voice.var(unbiased=False) + 1e-7))[None]
        features = F.interpolate(self._convolve(normalised, cancel), size=frames, mode="linear", align_corners=True)

        extractor = self.model.feature_extractor
        handles = [layer.register_forward_pre_hook(lambda *_: _check(cancel)) for layer in self.model.encoder.layers]
        self.model.feature_extractor = _Given(features)
        try:
            states = self.model(normalised, output_hidden_states=True).hidden_states
        finally:
            self.model.feature_extractor = extractor
            for handle in handles:
                handle.remove()
        return torch.stack(states[1:], dim=2)[0]

    def _convolve(self, voice: Tensor, cancel: CancelToken | None) -> Tensor:
        """Run the convolutions over (1, samples): (1, channels, features), chunk by chunk."""
        count = (voice.shape[1] - self._field) // self._stride + 1
        extractor = self.model.feature_extractor
        if count <= self._chunk:
            _check(cancel)
            features: Tensor = extractor(voice)
            return features
        first, *others = extractor.conv_layers
        # Only the first layer's norm needs the whole voice, if it is a group norm.
        statistics = (
            self._statistics(first, voice, cancel)
            if isinstance(getattr(first, "layer_norm", None), nn.GroupNorm)
            else None
        )
        parts = []
        for begin in range(0, count, self._chunk):
            _check(cancel)
            end = min(begin + self._chunk, count)
            part = voice[:, None, begin * self._stride : (end - 1) * self._stride + self._field]
            if statistics is None:
                part = first(part)
            else:
                part = first.activation(torch.addcmul(statistics[1], first.conv(part), statistics[0]))
            for layer in others:
                part = layer(part)
            parts.append(part)
        return torch.cat(parts, dim=2)

    def _statistics(self, layer: Any, voice: Tensor, cancel: CancelToken | None) -> tuple[Tensor, Tensor]:
        """Return scale and shift, (channels, 1), that are the group norm of `layer` over the whole voice."""
        norm: nn.GroupNorm = layer.layer_norm
        kernel, stride = layer.conv.kernel_size[0], layer.conv.stride[0]
        count = (voice.shape[1] - kernel) // stride + 1
        step = self._chunk * self._stride // stride
        total = torch.zeros(norm.num_channels, dtype=torch.float64)
        squares = torch.zeros_like(total)
        for begin in range(0, count, step):
            _check(cancel)
            end = min(begin + step, count)
            part = layer.conv(voice[:, None, begin * stride : (end - 1) * stride + kernel])[0].double()
            total += part.sum(dim=1)
            squares += part.square().sum(dim=1)
        groups = norm.num_groups
        number = count * norm.num_channels // groups
        mean = total.view(groups, -1).sum(dim=1) / number
        variance = squares.view(groups, -1).sum(dim=1) / number - mean.square()
        each = norm.num_channels // groups
        scale = norm.weight.double() * torch.rsqrt(variance.clamp(min=0) + norm.eps).repeat_interleave(each)
        shift = norm.bias.double() - mean.repeat_interleave(each) * scale
        return scale.float()[:, None], shift.float()[:, None]


class _Given(nn.Module):
    """Replaces the convolutions by their output."""

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.features = features

    def forward(self, _voice: Tensor) -> Tensor:
        return self.features


def _check(cancel: CancelToken | None) -> None:
    if cancel is not None and cancel.is_set():
        raise Cancelled("encode")


def audio_windows(features: Tensor, start: int, frames: int, fps: float, native_fps: float) -> Tensor:
    """Cut the windows of `frames` video frames from `start` on: (n, A, L, C) -> (n, frames, 5, L, C).

    Frame i is at i / fps seconds; its slots are two native frames before to two after, each at its own time,
    interpolated between neighbours and clamped at the ends of the voice.
    """
    last = features.shape[1] - 1
    centre = (torch.arange(frames, dtype=torch.float64) + start) * (native_fps / fps)
    slots = torch.arange(WINDOW) - WINDOW // 2
    position = (centre[:, None] + slots).clamp(0, last)
    # Times that differ from whole frames only by rounding are whole frames.
    nearest = position.round()
    position = torch.where((position - nearest).abs() < 1e-6, nearest, position)
    below = position.floor()
    weight = (position - below).to(features.dtype)
    lower = features[:, below.long()]
    if not bool(weight.any()):
        return lower
    upper = features[:, (below.long() + 1).clamp(max=last)]
    return torch.lerp(lower, upper, weight[None, :, :, None, None].to(features.device))


def _receptive_field(kernels: list[int], strides: list[int]) -> int:
    field = 1
    for kernel, stride in zip(reversed(kernels), reversed(strides), strict=True):
        field = (field - 1) * stride + kernel
    return field
