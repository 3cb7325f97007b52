"""The three attentions of a block: self (given and noisy frames, reference map, cache), text, and voices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from engine.network.attention import NATIVE, class_scores, prepare_attention
from engine.network.compat import dispatch_attention_fn
from engine.network.embeddings import RMSNorm, Rotary, rotate
from engine.network.fused import eager, rms_rotate
from engine.network.speakers import Speakers, label_positions, rotary_at
from plugins.families.longcat.frames import FrameLayout

#: Speakers of each sample of a batch.
Speaking = Sequence[Speakers | None]


@dataclass
class KeyValueCache:
    """Keys and values of the given frames of a window, block by block.

    Each entry is (keys, values), both (1, C * S, heads, head_dim); keys after their norm and before rotary positions.
    Valid for every pass and step of the window: given frames see only themselves.
    """

    layout: FrameLayout
    entries: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        """The bytes of all entries."""
        return sum(key.nbytes + value.nbytes for key, value in self.entries)


class HeadNorm(RMSNorm):
    """RMS norm of each head over its channels, in float32; all heads share the weight (head_dim,)."""

    def of_heads(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Normalise (B, L, heads, head_dim) and return it in `dtype`, in new memory."""
        normed: Tensor = self(x.flatten(1, 2), 1, None, dtype)
        return normed.view(x.shape)


def _turn(x: Tensor, rotary: Rotary, dtype: torch.dtype, *, fused: bool) -> Tensor:
    """Rotate (B, L, heads, head_dim), by our kernel or by torch's operators, which may overwrite `x`."""
    if not fused or eager():
        return rotate(x, rotary, dtype)
    return rms_rotate(x.flatten(2), None, rotary.turns, x.shape[2], 0.0, dtype).view(x.shape)


class SelfAttention(nn.Module):
    """Self-attention over given and noisy frames; also scores noisy tokens by speaker if two or more speak."""

    #: The kernel; see `set_self_attention_backend`.
    backend = NATIVE
    #: Whether our own kernel rotates queries and keys.
    fused = False

    def __init__(self, dim: int, heads: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.q_norm = HeadNorm(dim // heads, eps)
        self.k_norm = HeadNorm(dim // heads, eps)
        self.proj = nn.Linear(dim, dim)

    def forward(
        self,
        hidden_states: Tensor,
        rotary: Rotary,
        layout: FrameLayout,
        speakers: Speaking | None = None,
        cached: tuple[Tensor, Tensor] | None = None,
        kept: list[tuple[Tensor, Tensor]] | None = None,
    ) -> tuple[Tensor, list[Tensor | None] | None]:
        """Attend over (B, L, D); return the output (B, L, D) and, with `speakers`, each sample's class scores.

        `rotary` is the table of all frames of `layout`. With `cached` keys and values of the given frames the L tokens
        are those of the noisy frames. Keys and values of this call are appended to `kept`.
        """
        precise = next((one.values.dtype for one in speakers or () if one is not None), hidden_states.dtype)
        query, key, value = self.qkv(hidden_states).unflatten(2, (3, self.heads, -1)).unbind(2)
        query, key = self.q_norm.of_heads(query, precise), self.k_norm.of_heads(key, precise)
        if kept is not None:
            # A copy: the rotation below may overwrite the keys.
            kept.append((key.to(value.dtype, copy=True), value.clone()))
        if cached is not None:
            given, given_value = (part.expand(len(key), -1, -1, -1) for part in cached)
            key = torch.cat([given.to(key.dtype), key], dim=1)
            value = torch.cat([given_value.to(value.dtype), value], dim=1)
        turns = rotary.turns
        own = Rotary(turns[:, turns.shape[1] - query.shape[1] :])
        # One after the other: each releases what it was.
        query = _turn(query, own, precise, fused=self.fused)
        key = _turn(key, rotary, precise, fused=self.fused)
        frame = key.shape[1] // layout.total
        scores: list[Tensor | None] | None = None
        if speakers is not None:
            noisy = query[:, query.shape[1] - layout.noisy * frame :]
            scores = [
                None if one is None else class_scores(noisy[index : index + 1], key[index : index + 1], one)
                for index, one in enumerate(speakers)
            ]
        # Not as arguments: the exact ones are released.
        query, key = query.to(value.dtype), key.to(value.dtype)
        output = self._attend(query, key, value, layout, frame)
        return self.proj(output.flatten(2, 3)), scores

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, layout: FrameLayout, frame: int) -> Tensor:
        """Attend group by group: what a group may not see is left out of its keys, so that no kernel needs a mask."""
        parts: list[Tensor] = []

        def attend(queries: tuple[int, int], keys: tuple[int, int]) -> None:
            (begin, end), (first, last) = queries, keys
            if begin < end:
                some = (query[:, begin:end], key[:, first:last], value[:, first:last])
                parts.append(dispatch_attention_fn(*some, backend=self.backend))

        own, everything = int(layout.reference) * frame, key.shape[1]
        start = query.shape[1] - layout.noisy * frame
        if start:
            attend((0, own), (0, own))
            attend((own, start), (own, start))
        hidden = tuple(start + at * frame for at in layout.hiding)
        attend((start, hidden[0]), (0, everything))
        attend((hidden[0], hidden[1]), (frame, everything))
        attend((hidden[1], query.shape[1]), (0, everything))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def set_self_attention_backend(model: nn.Module, name: str) -> None:
    """Switch the self-attention of every block of `model` to diffusers' attention backend `name`.

    Raises as `engine.network.attention.prepare_attention`. A backend that computes attention itself, from the grid of
    the tokens, is not supported: groups of frames see different keys.
    """
    backend = prepare_attention(name)
    for module in model.modules():
        if isinstance(module, SelfAttention):
            module.backend = backend


class _CrossAttention(nn.Module):
    """The layers of an attention to other tokens."""

    def __init__(self, dim: int, heads: int, context_dim: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.q_linear = nn.Linear(dim, dim)
        self.kv_linear = nn.Linear(context_dim, 2 * dim)
        self.q_norm = HeadNorm(dim // heads, eps)
        self.k_norm = HeadNorm(dim // heads, eps)
        self.proj = nn.Linear(dim, dim)

    def _project(self, hidden: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries of (B, L, D), and keys and values of `context`, each (B, tokens, heads, head_dim)."""
        key, value = self.kv_linear(context).unflatten(2, (2, self.heads, -1)).unbind(2)
        return self.q_linear(hidden).unflatten(2, (self.heads, -1)), key, value


class TextAttention(_CrossAttention):
    """Attention from noisy tokens to the rows of the text, padded ones included."""

    def __init__(self, dim: int, heads: int, eps: float) -> None:
        super().__init__(dim, heads, dim, eps)

    def forward(self, hidden_states: Tensor, context: Tensor) -> Tensor:
        """Attend from (B, L, D) to (B, rows, D)."""
        query, key, value = self._project(hidden_states, context)
        query, key = self.q_norm.of_heads(query, value.dtype), self.k_norm.of_heads(key, value.dtype)
        output = dispatch_attention_fn(query, key, value, backend=NATIVE)
        attended: Tensor = self.proj(output.flatten(2, 3))
        return attended


class AudioAttention(_CrossAttention):
    """Attention from the tokens of each noisy frame to that frame's audio tokens; L-RoPE separates the voices."""

    #: Whether our own kernel rotates the queries.
    fused = False

    def forward(
        self,
        hidden_states: Tensor,
        audio: Sequence[Tensor],
        scores: Sequence[Tensor | None] | None = None,
        speakers: Speaking | None = None,
    ) -> Tensor:
        """Attend from (B, L, D) to each sample's audio tokens (frames, K, audio_dim); L is frames times their tokens.

        `scores` of `SelfAttention` and `speakers` place the voices.
        """
        outputs = [
            self._attend(
                hidden_states[index : index + 1],
                tokens,
                None if scores is None else scores[index],
                None if speakers is None else speakers[index],
            )
            for index, tokens in enumerate(audio)
        ]
        attended: Tensor = self.proj(outputs[0] if len(outputs) == 1 else torch.cat(outputs))
        return attended

    def _attend(self, hidden: Tensor, audio: Tensor, scores: Tensor | None, speakers: Speakers | None) -> Tensor:
        query, key, value = self._project(hidden, audio)
        if speakers is None or scores is None:
            query, key = self.q_norm.of_heads(query, value.dtype), self.k_norm.of_heads(key, value.dtype)
        else:
            # Not rounded between norm and rotation.
            query, key = self.q_norm.of_heads(query, torch.float32), self.k_norm.of_heads(key, torch.float32)
            labels = rotary_at(label_positions(scores, speakers), speakers.frequencies)
            query = _turn(query, labels, value.dtype, fused=self.fused)
            # Few: in every frame a voice has as many as the config's `context_tokens`.
            key = rotate(key, speakers.keys, value.dtype)
        query = query.unflatten(1, (len(audio), -1))[0]  # type: ignore[no-untyped-call]
        output: Tensor = dispatch_attention_fn(query, key, value, backend=NATIVE)
        return output.flatten(2, 3).flatten(0, 1)[None]
