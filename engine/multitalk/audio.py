"""Voice -> audio features, and the five-frame windows the network hears."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

#: Samples a second of every voice.
SAMPLE_RATE = 16_000
#: Slots of one window; the middle one is the frame itself.
WINDOW = 5


def audio_frames(samples: int, fps: float) -> int:
    """Return how many feature frames a voice of `samples` has at `fps`; at least one."""
    # A frame that begins within the last microsecond is a rounding error of the length.
    return max(1, int(samples * fps / SAMPLE_RATE + 1e-6))


class AudioEncoder:
    """wav2vec 2.0 (transformers' Wav2Vec2Model) at the frame rate of the video; float32 on the CPU."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._shortest = _receptive_field(model.config.conv_kernel, model.config.conv_stride)

    @torch.no_grad()
    def encode(self, voice: Tensor, frames: int) -> Tensor:
        """Return features of a voice, (samples,) float32 mono 16 kHz: (frames, layers, channels), float32.

        The voice is brought to mean 0 and variance 1. The convolutions' output is interpolated to `frames` before the
        encoder, so that positions and attention see video frames; then every layer's output is kept, without what
        enters the first.
        """
        if voice.shape[0] < self._shortest:
            voice = F.pad(voice, (0, self._shortest - voice.shape[0]))
        voice = voice.to(next(self.model.parameters()).device, torch.float32)
        normalised = (voice - voice.mean()) / torch.sqrt(voice.var(unbiased=False) + 1e-7)

        def interpolate(_module: Any, _inputs: Any, features: Tensor) -> Tensor:
            return F.interpolate(features, size=frames, mode="linear", align_corners=True)

        handle = self.model.feature_extractor.register_forward_hook(interpolate)
        try:
            states = self.model(normalised[None], output_hidden_states=True).hidden_states
        finally:
            handle.remove()
        return torch.stack(states[1:], dim=2)[0]


def audio_windows(features: Tensor, start: int, frames: int, fps: float, native_fps: float) -> Tensor:
    """Cut the windows of `frames` video frames from `start` on: (n, A, L, C) -> (n, frames, 5, L, C).

    Frame i sits at i / fps seconds; its slots lie two native frames before to two after, each at its own time,
    interpolated between neighbours where it falls between two and held at the ends of the voice.
    """
    last = features.shape[1] - 1
    centre = (torch.arange(frames, dtype=torch.float64) + start) * (native_fps / fps)
    slots = torch.arange(WINDOW) - WINDOW // 2
    position = (centre[:, None] + slots).clamp(0, last)
    # Times that are whole frames but for rounding are whole frames.
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
