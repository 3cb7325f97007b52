"""Timestep sinusoid, rotary tables, and the time, text and image embedders, with Wan's names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from engine.network import fused
from engine.network.compat import PixArtAlphaTextProjection, TimestepEmbedding, WanImageEmbedding

ROPE_THETA = 10000.0


class Rotary(NamedTuple):
    """A rotary table: cosine and sine of every pair's angle, float32, (1, L, 1, head_dim / 2, 2).

    It is broadcast over the heads of queries and keys (B, L, heads, head_dim).
    """

    turns: Tensor


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


def rotary_grid(
    frames: int, rows: int, columns: int, head_dim: int, device: torch.device, times: Sequence[int] | None = None
) -> Rotary:
    """Build Wan's 3-D rotary table for tokens in (time, row, column) order.

    A head's channels are split into time, height and width; height and width have 2 * (head_dim // 6) each, time the
    rest. Angles are computed in float64. `times`: the frames' positions in time, by default 0, 1, ...
    """
    side = 2 * (head_dim // 6)
    shape = (frames, rows, columns)
    angles = []
    for axis, dim in enumerate((head_dim - 2 * side, side, side)):
        places = torch.arange(shape[axis], dtype=torch.float64)
        if axis == 0 and times is not None:
            places = torch.tensor(times, dtype=torch.float64)
        phase = places[:, None] * rotary_frequencies(dim)
        view = [1, 1, 1, -1]
        view[axis] = shape[axis]
        angles.append(phase.view(view).expand(*shape, -1))
    exact = rotary_table(torch.cat(angles, dim=-1).flatten(0, 2))
    return Rotary(exact.turns.float().to(device))


def rotary_table(angles: Tensor) -> Rotary:
    """Build the table of angles (L, head_dim / 2), in their dtype."""
    return Rotary(torch.stack((angles.cos(), angles.sin()), dim=-1)[None, :, None])


def rotate(x: Tensor, rotary: Rotary, dtype: torch.dtype) -> Tensor:
    """Rotate the interleaved pairs (2j, 2j+1) of `x` (B, L, heads, head_dim) in float32; return them in `dtype`.

    Without gradients a float32 `x` is overwritten.
    """
    pairs = x.float().unflatten(-1, (-1, 2))  # type: ignore[no-untyped-call]
    if fused.eager():
        # Inductor fuses real arithmetic; for complex numbers it generates no code.
        (first, second), (cos, sin) = pairs.unbind(-1), rotary.turns.unbind(-1)
        pairs = torch.stack((first * cos - second * sin, second * cos + first * sin), dim=-1)
    else:
        # As complex numbers: one pass that reads and writes every pair once, in order.
        torch.view_as_complex(pairs).mul_(torch.view_as_complex(rotary.turns))
    turned: Tensor = pairs.flatten(-2)
    return turned.to(dtype)


class RMSNorm(nn.RMSNorm):
    """RMSNorm over all channels, and the rotation of its result, both in float32: nothing is rounded in between.

    The result is linear in `weight`, so that a LoRA can add the result of a change of it.
    """

    #: Whether our own kernel computes it.
    fused = False

    def forward(
        self,
        x: Tensor,
        heads: int = 1,
        rotary: Rotary | None = None,
        dtype: torch.dtype = torch.float32,
        *,
        into: bool = False,
    ) -> Tensor:
        """Normalise (B, L, D) to (B, L, heads, D / heads) of `dtype`; with `rotary` its pairs are rotated.

        `into`: without gradients a CPU may overwrite `x`, which nothing else uses.
        """
        assert self.eps is not None
        if self.fused and not fused.eager():
            turned = fused.rms_rotate(x, self.weight, None if rotary is None else rotary.turns, heads, self.eps, dtype)
            result: Tensor = turned.unflatten(-1, (heads, -1))  # type: ignore[no-untyped-call]
            return result
        # A norm as a reduction reads x once; torch's composite kernel writes the squares first.
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        scale = torch.rsqrt(norm.square() / x.shape[-1] + self.eps)
        # In place, a CPU touches no new memory. A hook, such as a LoRA's, also gets `x`.
        into = into and x.is_cpu and x.dtype == torch.float32 and not fused.eager() and not self._forward_hooks
        if rotary is not None:
            # A CPU multiplies bfloat16 by float32 value by value, more slowly than it converts and multiplies.
            copied = x.is_cpu and x.dtype != torch.float32 and not fused.eager()
            weighted = x.float().mul_(self.weight.float()) if copied or into else x * self.weight.float()
            weighted = weighted.unflatten(-1, (heads, -1))  # type: ignore[no-untyped-call]
            # The norm is a factor of the table, which is smaller than x by the number of heads.
            return rotate(weighted, Rotary(rotary.turns * scale[..., None, None]), dtype)
        scaled = x.mul_(scale) if into else x * scale
        if fused.eager():
            scaled = (scaled * self.weight).to(dtype)
        elif scaled.is_cpu:
            scaled = scaled.mul_(self.weight).to(dtype)
        else:
            # On a GPU the kernel itself casts what it writes.
            scaled = torch.mul(scaled, self.weight, out=torch.empty_like(scaled, dtype=dtype))
        normed: Tensor = scaled.unflatten(-1, (heads, -1))  # type: ignore[no-untyped-call]
        return normed


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
