"""The three attentions of a block: self (with the reference map), text and image, and audio."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from engine.data.attention import Attend, TokenGrid
from engine.errors import ConfigError, UnknownComponent
from engine.network import fused
from engine.network.compat import (
    AttentionBackendName,
    AttentionModuleMixin,
    WanAttention,
    check_attention_backend_requirements,
    dispatch_attention_fn,
    fetch_kernel,
)
from engine.network.embeddings import RMSNorm, Rotary, rotate
from engine.network.sequence import Shard
from engine.network.speakers import Speakers, label_positions, rotary_at

NATIVE = AttentionBackendName.NATIVE


def prepare_attention(name: str) -> AttentionBackendName:
    """Check what diffusers' attention backend `name` needs, and fetch its kernel if it comes from the Hub.

    Called before weights are read. Raises UnknownComponent for a name diffusers does not have, and ConfigError if what
    it needs is not installed, or if it cannot be fetched.
    """
    names = [backend.value for backend in AttentionBackendName]
    if name not in names:
        raise UnknownComponent("attention", name, names)
    backend = AttentionBackendName(name)
    try:
        check_attention_backend_requirements(backend)
    except (RuntimeError, ImportError) as error:
        raise ConfigError(str(error), field="attention", hint="choose attention=sdpa or install the package") from error
    try:
        fetch_kernel(backend)
    except Exception as error:  # a hub, a cache or the code of a kernel may raise anything
        what = f"the attention kernel {name} cannot be fetched from the Hub: {error}"
        raise ConfigError(what, field="attention", hint="choose attention=sdpa") from error
    return backend


def set_self_attention_backend(model: nn.Module, name: str) -> None:
    """Switch the self-attention of every block of `model` to diffusers' attention backend `name`.

    Only `attn1` is switched, and only of this model: diffusers' own `set_attention_backend` would switch the short
    text and audio attentions too and change the default of the whole process. The other attentions stay with torch's
    own kernel, whatever that default is. Raises as `prepare_attention`.
    """
    backend = prepare_attention(name)
    pin_attentions(model)
    for attention in _self_attentions(model):
        attention.processor._attention_backend, attention.processor.attend = backend, None


def pin_attentions(model: nn.Module) -> None:
    """Have all attentions of `model` use torch's own kernel, whatever diffusers' default for the process is."""
    for module in model.modules():
        if isinstance(module, AttentionModuleMixin):
            module.processor._attention_backend = NATIVE


def set_own_self_attention(model: nn.Module, attend: Attend) -> None:
    """Have `attend` compute the self-attention of every block of a MultiTalkTransformer3DModel.

    It gets queries, keys and values (1, L, heads, D), and the grid of the L tokens, which the model's own call knows.
    """
    pin_attentions(model)
    attentions = list(_self_attentions(model))
    patch: Any = model.config.patch_size  # type: ignore[union-attr]

    def set_grid(_model: nn.Module, _args: Any, kwargs: Any) -> None:
        latents = kwargs.get("hidden_states")
        if latents is not None:
            sides = (size // step for size, step in zip(latents.shape[2:], patch, strict=True))
            frames, rows, columns = map(int, sides)
            for layer, attention in enumerate(attentions):
                attention.processor.grid = TokenGrid(frames, rows, columns, layer, len(attentions))

    for attention in attentions:
        attention.processor.attend = attend
    model.register_forward_pre_hook(set_grid, with_kwargs=True)


def _self_attentions(model: nn.Module) -> Iterator[WanAttention]:
    for module in model.modules():
        if isinstance(module, WanAttention) and isinstance(module.processor, SelfAttentionProcessor):
            yield module


def wan_attention(dim: int, heads: int, eps: float, **kwargs: Any) -> WanAttention:
    """Return diffusers' Wan attention (its names, its layers) with the norms of this network."""
    attention = WanAttention(dim, heads, dim // heads, eps, **kwargs)
    for name in ("norm_q", "norm_k", "norm_added_k"):
        if hasattr(attention, name):
            setattr(attention, name, RMSNorm(dim, eps))
    return attention


class SelfAttentionProcessor:
    """Self-attention with 3-D rotary positions; also scores every token by speaker when two or more speak."""

    #: None: diffusers' default for the process, which `attention_backend` and DIFFUSERS_ATTN_BACKEND change. The engine
    #: pins its networks to a kernel (`pin_attentions`), as another model in the process may have changed that default.
    _attention_backend: AttentionBackendName | None = None
    _parallel_config = None
    #: Computes attention in place of a backend, with the grid of the tokens (`set_own_self_attention`).
    attend: Attend | None = None
    grid: TokenGrid | None = None

    def __call__(
        self,
        attn: WanAttention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: Rotary | None = None,
        speakers: Speakers | list[Speakers | None] | None = None,
        shard: Shard | None = None,
    ) -> Tensor | tuple[Tensor, Tensor | list[Tensor | None]]:
        """Attend over (B, L, D); returns the output (B, L, D), and with `speakers` the class scores (C, L) as well.

        With a `shard` the L tokens are its own; they attend to the tokens of all processes. In a batch, speakers and
        scores are lists with one entry for each sample.
        """
        # Scores need queries and keys in their own dtype: the last bits can decide the class of a token.
        batch = speakers if isinstance(speakers, list) else [speakers]
        precise = next((one.values.dtype for one in batch if one is not None), hidden_states.dtype)
        query = attn.norm_q(attn.to_q(hidden_states), attn.heads, rotary_emb, precise, into=True)
        key = attn.norm_k(attn.to_k(hidden_states), attn.heads, rotary_emb, precise, into=True)
        value = attn.to_v(hidden_states).unflatten(2, (attn.heads, -1))
        scores: Tensor | list[Tensor | None] | None = None
        if isinstance(speakers, list):
            scores = [
                None if one is None else class_scores(query[index : index + 1], key[index : index + 1], one)
                for index, one in enumerate(speakers)
            ]
        elif speakers is not None:
            # Not from the keys that attention exchanges: those of one frame are few, and a mean over heads in another
            # order differs in the last bits.
            first = key if shard is None else shard.first(key, speakers.values.shape[1])
            scores = class_scores(query, first, speakers)
        query, key = query.to(value.dtype), key.to(value.dtype)
        if self.attend is not None and self.grid is not None:
            output = self.attend(query, key, value, self.grid)
        elif shard is None:
            output = dispatch_attention_fn(query, key, value, backend=self._attention_backend)
        else:
            output = shard.attend(query, key, value, self._attention_backend)
        attended: Tensor = attn.to_out[1](attn.to_out[0](output.flatten(2, 3)))
        # Not (attended, None): step caches of diffusers keep all outputs of an attention, and expect tensors.
        return attended if scores is None else (attended, scores)


def class_scores(query: Tensor, key: Tensor, speakers: Speakers) -> Tensor:
    """Score how much each token attends to each class's part of the first latent frame: (C, L), float32.

    Attention over the first frame's keys with the class masks as values gives, per head, the attention mass on every
    class; the mean over heads divided by the class's size is the reference's map, without its L x S matrix. Computed
    in the dtype of `speakers.values`, and always with torch's own kernel: other backends may refuse masks as values, or
    approximate them.
    """
    tokens, classes, dtype = speakers.values.shape[1], speakers.sums.shape[0], speakers.values.dtype
    values = speakers.values.expand(-1, -1, query.shape[2], -1)
    mass: Tensor = dispatch_attention_fn(query.to(dtype), key[:, :tokens].to(dtype), values, backend=NATIVE)
    return mass[0, :, :, :classes].float().mean(dim=1).T / speakers.sums[:, None]


class CrossAttentionProcessor:
    """Attention to image tokens and, added to it, to text tokens.

    diffusers' own processor treats all except the last 512 tokens as image tokens, which is wrong for any other text
    length; here the number of image tokens is an argument.
    """

    _attention_backend: AttentionBackendName | None = None
    _parallel_config = None

    def __init__(self, image_tokens: int) -> None:
        self.image_tokens = image_tokens

    def __call__(
        self,
        attn: WanAttention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        rotary_emb: Rotary | None = None,
    ) -> Tensor:
        """Attend from (1, L, D) to [image tokens, text tokens] (1, image_tokens + text_len, D)."""
        image = encoder_hidden_states[:, : self.image_tokens]
        text = encoder_hidden_states[:, self.image_tokens :]
        value = attn.to_v(text).unflatten(2, (attn.heads, -1))
        query = attn.norm_q(attn.to_q(hidden_states), attn.heads, None, value.dtype, into=True)
        key = attn.norm_k(attn.to_k(text), attn.heads, None, value.dtype, into=True)
        output = dispatch_attention_fn(query, key, value, backend=self._attention_backend)
        value = attn.add_v_proj(image).unflatten(2, (attn.heads, -1))
        key = attn.norm_added_k(attn.add_k_proj(image), attn.heads, None, value.dtype, into=True)
        image = dispatch_attention_fn(query, key, value, backend=self._attention_backend)
        output = fused.add(output, image, into=True)
        attended: Tensor = attn.to_out[1](attn.to_out[0](output.flatten(2, 3)))
        return attended


class AudioAttentionProcessor:
    """Attention from the tokens of each latent frame to that frame's audio tokens; L-RoPE separates the speakers."""

    _attention_backend: AttentionBackendName | None = None
    _parallel_config = None

    def __call__(
        self,
        attn: AudioAttention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        scores: Tensor | None = None,
        speakers: Speakers | None = None,
        shard: Shard | None = None,
    ) -> Tensor:
        """Attend from (1, L, D) to audio tokens (T, K, audio_dim); `scores` (C, L) and `speakers` place the labels.

        With a `shard` the T frames are those of the L tokens.
        """
        query = attn.to_q(hidden_states).unflatten(2, (attn.heads, -1))
        key, value = attn.to_kv(encoder_hidden_states).unflatten(2, (2, attn.heads, -1)).unbind(2)
        if speakers is not None and scores is not None:
            labels = rotary_at(label_positions(scores, speakers, shard), speakers.frequencies)
            if attn.fused and not fused.eager():
                query = fused.rms_rotate(query.flatten(2), None, labels.turns, attn.heads, 0.0, value.dtype)
                query = query.unflatten(2, (attn.heads, -1))  # type: ignore[no-untyped-call]
            else:
                query = rotate(query, labels, value.dtype)
            # Few: in every frame a speaker has as many as the config's `audio_tokens`.
            key = rotate(key, speakers.keys, value.dtype)
        frames = encoder_hidden_states.shape[0]
        if shard is not None:
            query = shard.fill_frames(query, frames)
        query = query.unflatten(1, (frames, -1))[0]
        output = dispatch_attention_fn(query, key, value, backend=self._attention_backend)
        output = output.flatten(2, 3).flatten(0, 1)[None]
        audio: Tensor = attn.to_out(output if shard is None else shard.cut_frames(output))
        return audio


class AudioAttention(nn.Module, AttentionModuleMixin):  # type: ignore[misc]
    """Audio cross-attention: `to_q`, `to_kv` (rows: keys of all heads, then values) and `to_out`, all with bias."""

    _default_processor_cls = AudioAttentionProcessor
    _available_processors = [AudioAttentionProcessor]
    _supports_qkv_fusion = False
    is_cross_attention = True
    #: Whether our own kernel rotates the queries.
    fused = False
    processor: Any

    def __init__(self, dim: int, heads: int, audio_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, dim)
        self.to_kv = nn.Linear(audio_dim, 2 * dim)
        self.to_out = nn.Linear(dim, dim)
        self.processor = AudioAttentionProcessor()

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | list[Tensor],
        scores: Tensor | list[Tensor | None] | None = None,
        speakers: Speakers | list[Speakers | None] | None = None,
        shard: Shard | None = None,
    ) -> Tensor:
        """Do as the processor; in a batch, audio tokens, scores and speakers are lists, one entry for each sample.

        Samples of a batch have different numbers of audio tokens, so their attentions are computed one by one.
        """
        if not isinstance(encoder_hidden_states, list):
            output: Tensor = self.processor(
                self, hidden_states, encoder_hidden_states, scores=scores, speakers=speakers, shard=shard
            )
            return output
        places = range(len(encoder_hidden_states))
        return torch.cat(
            [
                self.processor(
                    self,
                    hidden_states[index : index + 1],
                    encoder_hidden_states[index],
                    scores=scores[index] if isinstance(scores, list) else None,
                    speakers=speakers[index] if isinstance(speakers, list) else None,
                )
                for index in places
            ]
        )
