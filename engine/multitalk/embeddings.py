"""Timestep sinusoid, rotary tables, and the time, text and image embedders, with Wan's names."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from engine.multitalk.compat import PixArtAlphaTextProjection, TimestepEmbedding, WanImageEmbedding

ROPE_THETA = 10000.0


class Rotary(NamedTuple):
    """Rotary tables (1, L, 1, head_dim), float32, broadcastable against queries and keys (B, L, heads, head_dim).

    For the pair (2j, 2j+1) rotated by angle p: `cos` is cos p at both positions, `after` is -sin p at 2j and 0 at
    2j+1, `before` 0 at 2j and sin p at 2j+1: what the next and the previous channel contribute.
    """

    cos: Tensor
    after: Tensor
    before: Tensor


def timestep_sinusoid(timestep: Tensor, channels: int) -> Tensor:
    """Embed `timestep` (B,), 0..1000, as [cos, sin] of `channels` / 2 frequencies: (B, channels), float32.

    Computed in float64: at t near 1000 a float32 phase has an error of 5e-5, most of the error of a whole forward.
    Source: Wan 2.1, wan/modules/model.py, sinusoidal_embedding_1d.
    """
    half = channels // 2
    frequencies = ROPE_THETA ** -(torch.arange(half, dtype=torch.float64, device=timestep.device) / half)
    angles = timestep.double()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1).float()


def rotary_frequencies(dim: int) -> Tensor:
    """Return the `dim` / 2 rotary frequencies 10000^(-2j/dim), float64 on the CPU (RoFormer, arXiv:2104.09864)."""
    return ROPE_THETA ** -(torch.arange(0, dim, 2, dtype=torch.float64) / dim)


def rotary_grid(frames: int, rows: int, columns: int, head_dim: int, device: torch.device) -> Rotary:
    """Build Wan's 3-D rotary table for tokens in (time, row, column) order.

    A head's channels are split into time, height and width; height and width have 2 * (head_dim // 6) each, time the
    rest. Angles are computed in float64.
    """
    side = 2 * (head_dim // 6)
    shape = (frames, rows, columns)
    angles = []
    for axis, dim in enumerate((head_dim - 2 * side, side, side)):
        phase = torch.arange(shape[axis], dtype=torch.float64)[:, None] * rotary_frequencies(dim)
        view = [1, 1, 1, -1]
        view[axis] = shape[axis]
        angles.append(phase.view(view).expand(*shape, -1))
    table = torch.cat(angles, dim=-1).flatten(0, 2)
    return Rotary(*(part.float().to(device) for part in rotary_tables(table)))


def rotary_tables(angles: Tensor) -> Rotary:
    """Build tables from angles (L, head_dim / 2), in their dtype."""
    angles = angles.repeat_interleave(2, dim=-1)[None, :, None]
    # Created on the device: a constant from the host would be a blocking copy in every block.
    even = 1 - torch.arange(angles.shape[-1], device=angles.device).to(angles.dtype) % 2
    sin = angles.sin()
    return Rotary(angles.cos(), sin * -even, sin * (1 - even))


def rotate(x: Tensor, rotary: Rotary, dtype: torch.dtype) -> Tensor:
    """Rotate the interleaved pairs (2j, 2j+1) of `x` (B, L, heads, head_dim) in float32; return them in `dtype`."""
    x = x.float()
    if torch.is_grad_enabled():
        first, second = x.unflatten(-1, (-1, 2)).unbind(-1)  # type: ignore[no-untyped-call]
        cos, sin = rotary.cos[..., 0::2], rotary.before[..., 1::2]
        return torch.stack((first * cos - second * sin, second * cos + first * sin), dim=-1).flatten(-2).to(dtype)
    # Three contiguous passes with zeros in the tables are three times faster than strided access to pairs.
    turned = x * rotary.cos
    turned[..., :-1].addcmul_(x[..., 1:], rotary.after[..., :-1])
    turned[..., 1:].addcmul_(x[..., :-1], rotary.before[..., 1:])
    return turned.to(dtype)


class RMSNorm(nn.RMSNorm):
    """RMSNorm over all channels that computes and returns float32, so that values are not rounded before rotation."""

    def forward(self, x: Tensor) -> Tensor:
        # A norm as a reduction reads x once; torch's composite kernel writes the squares first.
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        scaled = x * torch.rsqrt(norm.square() / x.shape[-1] + self.eps)
        return scaled * self.weight if torch.is_grad_enabled() else scaled.mul_(self.weight)


class TimeTextImageEmbedding(nn.Module):
    """Wan's condition embedder with the time path in float32.

    Submodules and parameters have diffusers' names (`time_embedder`, `time_proj`, `text_embedder`, `image_embedder`);
    diffusers' own forward rounds the time embedding to the model's dtype.
    """

    def __init__(self, dim: int, freq_dim: int, text_dim: int, image_dim: int) -> None:
        super().__init__()
        self.freq_dim = freq_dim
        self.time_embedder = TimestepEmbedding(in_channels=freq_dim, time_embed_dim=dim)
        self.act_fn = nn.SiLU()
        self.time_proj = nn.Linear(dim, dim * 6)
        self.text_embedder = PixArtAlphaTextProjection(text_dim, dim, act_fn="gelu_tanh")
        self.image_embedder = WanImageEmbedding(image_dim, dim)

    def forward(
        self, timestep: Tensor | None = None, text: Tensor | None = None, image: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Embed either the time or the conditions.

        With `timestep` (1,): the embedding (1, D) and its projection (1, 6, D), both float32. Otherwise text
        (1, text_len, text_dim), already padded, and image (1, image_tokens, image_dim): their tokens (1, ..., D).
        """
        if timestep is not None:
            return self._embed_time(timestep)
        if text is None or image is None:
            raise ValueError("text and image are embedded together")
        return self.text_embedder(text), self.image_embedder(image)

    def _embed_time(self, timestep: Tensor) -> tuple[Tensor, Tensor]:
        # Uses the weights' dtype, so that the model still works after a plain .to(bfloat16).
        dtype = next(self.time_embedder.parameters()).dtype
        embedding = self.time_embedder(timestep_sinusoid(timestep, self.freq_dim).to(dtype)).float()
        dtype = next(self.time_proj.parameters()).dtype
        projection = self.time_proj(self.act_fn(embedding).to(dtype)).float()
        return embedding, projection.unflatten(1, (6, -1))
