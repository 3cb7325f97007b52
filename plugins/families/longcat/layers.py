"""The parts of the transformer: modulation, norms, feed-forward, one block, embedders and head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.network.compat import register_cached_block
from engine.network.embeddings import Rotary, timestep_sinusoid
from engine.network.fused import add as add_change
from engine.network.fused import eager, layer_norm
from engine.network.norms import LayerNorm
from plugins.families.longcat.attention import AudioAttention, SelfAttention, Speaking, TextAttention
from plugins.families.longcat.frames import FrameLayout

#: Epsilon of the blocks' norms.
EPS = 1e-6
#: Multiple to which the feed-forward's inner width is rounded up.
_MULTIPLE = 256


class Modulation(nn.Linear):
    """A linear layer that computes in float32 whatever its weights are stored in."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - its name in torch
        """Map float32 (..., E) to float32."""
        bias = None if self.bias is None else self.bias.float()
        return F.linear(input.float(), self.weight.float(), bias)


def _modulation(time_dim: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.SiLU(), Modulation(time_dim, outputs))


def feed_forward_width(hidden_size: int, mlp_ratio: int) -> int:
    """Return the inner width of the SwiGLU feed-forward: two thirds of the ratio, rounded up to a multiple of 256."""
    return _MULTIPLE * -(-(2 * mlp_ratio * hidden_size // 3) // _MULTIPLE)


class FeedForward(nn.Module):
    """SwiGLU without biases."""

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(dim, inner, bias=False)
        self.w2 = nn.Linear(inner, dim, bias=False)
        self.w3 = nn.Linear(dim, inner, bias=False)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Map (B, L, D) to (B, L, D)."""
        gate = F.silu(self.w1(hidden_states))
        inner = gate * self.w3(hidden_states) if eager() else gate.mul_(self.w3(hidden_states))
        forwarded: Tensor = self.w2(inner)
        return forwarded


class FrameNorm(nn.Module):
    """LayerNorm without parameters, then scale and shift of each token's latent frame, all in float32."""

    #: Whether our own kernel computes it where all tokens have one time.
    fused = False

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.dim = dim
        self.eps = eps

    def forward(self, hidden_states: Tensor, shift: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
        """Normalise (B, L, D); `shift` and `scale` are float32 (1 or B, G, D) for G groups of L / G tokens."""
        if shift.shape[:2] == (1, 1):
            # One time for all: the modulation is the affine part of a LayerNorm, a single kernel.
            return layer_norm(hidden_states, 1 + scale[0, 0], shift[0, 0], self.eps, dtype, fused=self.fused)
        normed = F.layer_norm(hidden_states.float(), (self.dim,), eps=self.eps)
        normed = _by_group(normed, shift.shape[1])
        return torch.addcmul(shift[:, :, None], normed, 1 + scale[:, :, None]).flatten(1, 2).to(dtype)


def _by_group(tokens: Tensor, groups: int) -> Tensor:
    return tokens.unflatten(1, (groups, -1))  # type: ignore[no-untyped-call,no-any-return]


def _add(stream: Tensor, change: Tensor, gate: Tensor | None = None, *, into: bool = False) -> Tensor:
    """Return stream + change * gate in float32, as `engine.network.fused.add`.

    `gate` is (1 or B, G, D) for G groups of tokens.
    """
    if gate is None:
        return add_change(stream, change, into=into)
    groups = gate.shape[1]
    added = add_change(_by_group(stream, groups), _by_group(change, groups), gate[:, :, None], into=into)
    return added.flatten(1, 2)


class AvatarBlock(nn.Module):
    """Self-attention of all frames; text and audio attention of noisy frames; feed-forward of all."""

    def __init__(
        self, dim: int, inner: int, heads: int, time_dim: int, audio_dim: int, audio_prenorm: bool, eps: float = EPS
    ) -> None:
        super().__init__()
        self.adaLN_modulation = _modulation(time_dim, 6 * dim)
        self.audio_adaLN_modulation = _modulation(time_dim, 3 * dim)
        self.norm = FrameNorm(dim, eps)
        self.attn = SelfAttention(dim, heads, eps)
        self.pre_crs_attn_norm = LayerNorm(dim, eps)
        self.cross_attn = TextAttention(dim, heads, eps)
        self.pre_video_crs_attn_norm = LayerNorm(dim, eps)
        self.pre_audio_crs_attn_norm = LayerNorm(audio_dim, eps) if audio_prenorm else None
        self.audio_cross_attn = AudioAttention(dim, heads, audio_dim, eps)
        self.ffn = FeedForward(dim, inner)

    def forward(
        self,
        hidden_states: Tensor,
        dtype: torch.dtype,
        temb: Tensor,
        rotary: Rotary,
        layout: FrameLayout,
        context: Tensor | None = None,
        audio: Sequence[Tensor] = (),
        speakers: Speaking | None = None,
        cached: tuple[Tensor, Tensor] | None = None,
        kept: list[tuple[Tensor, Tensor]] | None = None,
    ) -> Tensor:
        """Transform tokens (B, L, D) of all frames, or of the noisy ones if given ones are `cached`.

        `temb` (1 or B, G, E) is float32: the embedded time of G groups of L / G tokens. The layers compute in `dtype`.
        Without `context` text and audio attention are left out.
        """
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = self.adaLN_modulation(temb).chunk(6, dim=-1)
        attended, scores = self.attn(
            self.norm(hidden_states, shift, scale, dtype), rotary, layout, speakers, cached=cached, kept=kept
        )
        # Out of place: step caches and callers keep their input tokens.
        tokens = _add(hidden_states, attended, gate)
        del attended
        if context is not None:
            given = layout.given if cached is None else 0
            begin = tokens.shape[1] // layout.total * given
            noisy = self._condition(tokens[:, begin:], dtype, temb[:, given:], context, audio, scores, speakers)
            # Without gradients it is the same memory.
            tokens = noisy if not begin else torch.cat([tokens[:, :begin], noisy], dim=1) if eager() else tokens
        forwarded = self.ffn(self.norm(tokens, ffn_shift, ffn_scale, dtype))
        return _add(tokens, forwarded, ffn_gate, into=True)

    def _condition(
        self,
        noisy: Tensor,
        dtype: torch.dtype,
        temb: Tensor,
        context: Tensor,
        audio: Sequence[Tensor],
        scores: Sequence[Tensor | None] | None,
        speakers: Speaking | None,
    ) -> Tensor:
        """Add text and audio attention to the noisy tokens."""
        noisy = _add(noisy, self.cross_attn(self.pre_crs_attn_norm(noisy, dtype), context), into=True)
        if self.pre_audio_crs_attn_norm is not None:
            audio = [self.pre_audio_crs_attn_norm(tokens, dtype) for tokens in audio]
        heard = self.audio_cross_attn(self.pre_video_crs_attn_norm(noisy, dtype), audio, scores, speakers)
        shift, scale, gate = self.audio_adaLN_modulation(temb).chunk(3, dim=-1)
        return _add(noisy, self.norm(heard, shift, scale, torch.float32), gate, into=True)


register_cached_block(AvatarBlock)


class TimeEmbedder(nn.Module):
    """Sinusoid and two layers, in float32."""

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.channels = channels
        self.mlp = nn.Sequential(Modulation(channels, dim), nn.SiLU(), Modulation(dim, dim))

    def forward(self, timestep: Tensor) -> Tensor:
        """Embed times (B, G), 0 .. 1000: (B, G, E), float32."""
        embedded: Tensor = self.mlp(timestep_sinusoid(timestep.flatten(), self.channels))
        return embedded.view(*timestep.shape, -1)


class TextEmbedder(nn.Module):
    """Two layers with a GELU between them."""

    def __init__(self, text_dim: int, dim: int) -> None:
        super().__init__()
        self.y_proj = nn.Sequential(nn.Linear(text_dim, dim), nn.GELU(approximate="tanh"), nn.Linear(dim, dim))

    def forward(self, text: Tensor) -> Tensor:
        """Map (1, rows, text_dim) to (1, rows, D)."""
        projected: Tensor = self.y_proj(text)
        return projected


class PatchEmbedder(nn.Module):
    """The convolution that makes one token of each patch."""

    def __init__(self, patch: tuple[int, int, int], channels: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv3d(channels, dim, kernel_size=patch, stride=patch)

    def forward(self, latents: Tensor) -> Tensor:
        """Map (B, channels, T, h, w) to tokens (B, L, D) in (time, row, column) order."""
        tokens: Tensor = self.proj(latents.to(self.proj.weight.dtype))
        return tokens.flatten(2).transpose(1, 2)


class Head(nn.Module):
    """The last norm and layer, in float32."""

    def __init__(self, dim: int, time_dim: int, outputs: int) -> None:
        super().__init__()
        self.norm = FrameNorm(dim, EPS)
        self.adaLN_modulation = _modulation(time_dim, 2 * dim)
        self.linear = Modulation(dim, outputs)

    def forward(self, tokens: Tensor, temb: Tensor) -> Tensor:
        """Map tokens (B, L, D) to patches (B, L, outputs), float32."""
        shift, scale = self.adaLN_modulation(temb).chunk(2, dim=-1)
        patches: Tensor = self.linear(self.norm(tokens, shift, scale, torch.float32))
        return patches
