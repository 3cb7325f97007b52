"""Where and when: timestep sinusoid, rotary tables, and the time, text and image embedders under Wan's names."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from engine.multitalk.compat import PixArtAlphaTextProjection, TimestepEmbedding, WanImageEmbedding

ROPE_THETA = 10000.0


class Rotary(NamedTuple):
    """Cosine and sine of rotary phases, broadcastable against the pairs of (B, L, heads, head_dim)."""

    cos: Tensor
    sin: Tensor


def timestep_sinusoid(timestep: Tensor, channels: int) -> Tensor:
    """Embed `timestep` (B,), 0..1000, as [cos, sin] of `channels` / 2 frequencies: (B, channels), float32.

    float64 inside: at t near 1000 a float32 phase is 5e-5 off, which is most of the residual of a whole forward.
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

    A head's pairs are split over time, height and width; height and width have 2 * (head_dim // 6) channels each and
    time the rest. Returns float32 tables (1, frames * rows * columns, 1, head_dim / 2), computed in float64 from
    frames + rows + columns angles only.
    """
    side = 2 * (head_dim // 6)
    shape = (frames, rows, columns)
    angles = []
    for axis, dim in enumerate((head_dim - 2 * side, side, side)):
        phase = torch.arange(shape[axis], dtype=torch.float64)[:, None] * rotary_frequencies(dim)
        view = [1, 1, 1, -1]
        view[axis] = shape[axis]
        angles.append(phase.view(view).expand(*shape, -1))
    table = torch.cat(angles, dim=-1).reshape(1, frames * rows * columns, 1, -1)
    return Rotary(table.cos().float().to(device), table.sin().float().to(device))


def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """Rotate the interleaved pairs (2j, 2j+1) of `x` (B, L, heads, head_dim) by `rotary`; keeps x's dtype."""
    cos, sin = rotary
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2).type_as(x)


class TimeTextImageEmbedding(nn.Module):
    """Wan's condition embedder with the time path kept in float32.

    Submodules and so parameter names are diffusers' (`time_embedder`, `time_proj`, `text_embedder`,
    `image_embedder`); diffusers' own forward rounds the time embedding to the model's dtype.
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
        # The weights' own dtype decides, so that a plain .to(bfloat16) of the model still runs.
        dtype = next(self.time_embedder.parameters()).dtype
        embedding = self.time_embedder(timestep_sinusoid(timestep, self.freq_dim).to(dtype)).float()
        dtype = next(self.time_proj.parameters()).dtype
        projection = self.time_proj(self.act_fn(embedding).to(dtype)).float()
        return embedding, projection.unflatten(1, (6, -1))
