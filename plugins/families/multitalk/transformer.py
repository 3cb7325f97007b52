"""The MultiTalk diffusion transformer: Wan 2.1 image-to-video with an audio attention in every block."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import _register_namedtuple, register_dataclass

from engine.errors import ConfigError, RequestError
from engine.loading.single_file import FromSingleFile
from engine.network import fused
from engine.network.attention import (
    AudioAttention,
    CrossAttentionProcessor,
    SelfAttentionProcessor,
    wan_attention,
)
from engine.network.audio_projection import AudioProjection
from engine.network.compat import (
    AttentionMixin,
    CacheMixin,
    FeedForward,
    PeftAdapterMixin,
    apply_lora_scale,
    known_to_diffusers,
    register_cached_block,
)
from engine.network.embeddings import Rotary, TimeTextImageEmbedding, rotary_grid
from engine.network.norms import LayerNorm, ModulatedLayerNorm, modulation_table
from engine.network.sequence import Shard
from engine.network.shapes import check_shape
from engine.network.speakers import Speakers, prepare_speakers, token_masks

#: Pattern of the names of all attentions.
_ATTENTIONS = r"blocks\.\d+\.(attn1|attn2|audio_attn)"


@dataclass(frozen=True)
class TransformerConditions:
    """What a forward needs in addition to latents and time; depends only on conditions and size: once per window.

    `context`: image then text tokens, (1, image_tokens + text_len, D). `audio`: audio tokens of every latent frame,
    speakers one after the other, (T, n * audio_tokens, audio_output_dim). `rotary`: float32 table of the token grid.
    `speakers`: None unless two or more speak. `latent_shape`: (T, h, w) of these conditions. `shard`: this process'
    part of the tokens, if several processes share a forward; `audio` and `rotary` are then those of its part.
    """

    context: Tensor
    audio: Tensor
    rotary: Rotary
    speakers: Speakers | None
    latent_shape: tuple[int, int, int]
    shard: Shard | None = None

    def split(self, group: Any, rank: int, size: int) -> TransformerConditions:
        """Return the part of undivided conditions for process `rank` of `size` in a process group."""
        total = self.rotary.turns.shape[1]
        shard = Shard(group, rank, size, total, total // self.audio.shape[0])
        rotary = Rotary(shard.select(self.rotary.turns))
        return replace(self, audio=shard.select_frames(self.audio), rotary=rotary, shard=shard)


# Compiled and exported networks take conditions as inputs; the names are stored in files of exported networks.
for _kind in (Rotary, Speakers):
    _register_namedtuple(_kind, serialized_type_name=f"engine.network.{_kind.__name__}")
register_dataclass(TransformerConditions, serialized_type_name="engine.network.TransformerConditions")


class Activation(nn.Module):
    """The first layer of a feed-forward and its activation, like diffusers' GELU, computed by `fused.gelu`."""

    def __init__(self, proj: nn.Module) -> None:
        super().__init__()
        self.proj = proj

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Map (1, L, D) to (1, L, ffn_dim)."""
        return fused.gelu(self.proj(hidden_states))


class MultiTalkTransformerBlock(nn.Module):
    """Self-attention, text and image attention, audio attention, feed-forward."""

    def __init__(
        self, dim: int, ffn_dim: int, heads: int, audio_dim: int, image_tokens: int, cross_attn_norm: bool, eps: float
    ) -> None:
        super().__init__()
        self.norm1 = ModulatedLayerNorm(dim, eps)
        self.attn1 = wan_attention(dim, heads, eps, processor=SelfAttentionProcessor())
        self.norm2 = LayerNorm(dim, eps) if cross_attn_norm else None
        self.attn2 = wan_attention(
            dim,
            heads,
            eps,
            added_kv_proj_dim=dim,
            cross_attention_dim_head=dim // heads,
            processor=CrossAttentionProcessor(image_tokens),
        )
        self.norm_audio = LayerNorm(dim, eps)
        self.audio_attn = AudioAttention(dim, heads, audio_dim)
        self.norm3 = ModulatedLayerNorm(dim, eps)
        self.ffn = FeedForward(dim, inner_dim=ffn_dim, activation_fn="gelu-approximate")
        self.ffn.net[0] = Activation(self.ffn.net[0].proj)
        self.scale_shift_table = nn.Parameter(torch.randn(1, 6, dim) / dim**0.5)

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        rotary_emb: Rotary,
        audio_hidden_states: Tensor | list[Tensor],
        speakers: Speakers | list[Speakers | None] | None = None,
        shard: Shard | None = None,
    ) -> Tensor:
        """Transform tokens (B, L, D); `temb` (1, 6, D), float32; the others as in TransformerConditions.

        In a batch, audio tokens and speakers are lists with one entry for each sample.

        The layers compute in the conditions' dtype. The residual stream has the tokens' dtype, usually float32: that
        halves the error of a bfloat16 network.
        """
        dtype = encoder_hidden_states.dtype
        table = modulation_table(self) + temb[0]
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = table.unbind(0)

        normed = self.norm1(hidden_states, shift, scale, dtype)
        attended = self.attn1(normed, rotary_emb=rotary_emb, speakers=speakers, shard=shard)
        attended, scores = (attended, None) if speakers is None else attended
        # Out of place: step caches and callers keep their input tokens.
        tokens = fused.add(hidden_states, attended, gate)
        normed = tokens.to(dtype) if self.norm2 is None else self.norm2(tokens, dtype)
        tokens = fused.add(tokens, self.attn2(normed, encoder_hidden_states), into=True)
        normed = self.norm_audio(tokens, dtype)
        audio = self.audio_attn(normed, audio_hidden_states, scores=scores, speakers=speakers, shard=shard)
        tokens = fused.add(tokens, audio, into=True)
        forwarded = self.ffn(self.norm3(tokens, ffn_shift, ffn_scale, dtype))
        return fused.add(tokens, forwarded, ffn_gate, into=True)


register_cached_block(MultiTalkTransformerBlock)


@known_to_diffusers
class MultiTalkTransformer3DModel(
    ModelMixin,  # type: ignore[misc]
    ConfigMixin,  # type: ignore[misc]
    FromSingleFile,
    PeftAdapterMixin,  # type: ignore[misc]
    CacheMixin,  # type: ignore[misc]
    AttentionMixin,  # type: ignore[misc]
):
    """Like diffusers' WanTransformer3DModel, with the same parts and names, plus audio attention.

    The defaults are the 14B model. Audio parameters are `audio_proj.*`, `blocks.N.audio_attn.*` and
    `blocks.N.norm_audio.*`; everything else is named as in diffusers' Wan checkpoints. Raises ConfigError for
    unsupported sizes.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["MultiTalkTransformerBlock"]
    _repeated_blocks = ["MultiTalkTransformerBlock"]
    # Matched against the dot-separated parts of a name.
    _keep_in_fp32_modules = [
        "patch_embedding",
        "time_embedder",
        "time_proj",
        "scale_shift_table",
        "norm1",
        "norm2",
        "norm3",
        "norm_q",
        "norm_k",
        "norm_added_k",
        "norm_audio",
        "norm",
        "proj_out",
    ]
    _skip_layerwise_casting_patterns = ["patch_embedding", "condition_embedder", "norm", "audio_proj", "proj_out"]
    _keys_to_ignore_on_load_unexpected = ["norm_added_q"]

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        patch_size: tuple[int, int, int] = (1, 2, 2),
        num_attention_heads: int = 40,
        attention_head_dim: int = 128,
        in_channels: int = 36,
        out_channels: int = 16,
        text_dim: int = 4096,
        freq_dim: int = 256,
        ffn_dim: int = 13824,
        num_layers: int = 40,
        cross_attn_norm: bool = True,
        qk_norm: str = "rms_norm_across_heads",
        eps: float = 1e-6,
        image_dim: int = 1280,
        added_kv_proj_dim: int | None = None,
        rope_max_seq_len: int = 1024,
        pos_embed_seq_len: int | None = None,
        text_len: int = 512,
        image_tokens: int = 257,
        audio_window: int = 5,
        audio_layers: int = 12,
        audio_channels: int = 768,
        audio_intermediate_dim: int = 512,
        audio_output_dim: int = 768,
        audio_tokens: int = 32,
        vae_scale_temporal: int = 4,
        class_range: int = 24,
        class_interval: int = 4,
    ) -> None:
        super().__init__()
        dim = num_attention_heads * attention_head_dim
        _check_config(
            patch_size=tuple(patch_size),
            head_dim=attention_head_dim,
            qk_norm=qk_norm,
            added_kv=added_kv_proj_dim in (None, dim),
            pos_embed_seq_len=pos_embed_seq_len,
            audio_window=audio_window,
        )
        patch_size = (1, patch_size[1], patch_size[2])  # a list where it was read from JSON
        self.patch_embedding = nn.Conv3d(in_channels, dim, kernel_size=patch_size, stride=patch_size)
        self.condition_embedder = TimeTextImageEmbedding(dim, freq_dim, text_dim, image_dim)
        self.audio_proj = AudioProjection(
            window=audio_window,
            stride=vae_scale_temporal,
            layers=audio_layers,
            channels=audio_channels,
            intermediate_dim=audio_intermediate_dim,
            output_dim=audio_output_dim,
            tokens=audio_tokens,
        )
        self.blocks = nn.ModuleList(
            MultiTalkTransformerBlock(
                dim, ffn_dim, num_attention_heads, audio_output_dim, image_tokens, cross_attn_norm, eps
            )
            for _ in range(num_layers)
        )
        self.norm_out = ModulatedLayerNorm(dim, eps)
        self.proj_out = nn.Linear(dim, out_channels * math.prod(patch_size))
        self.scale_shift_table = nn.Parameter(torch.randn(1, 2, dim) / dim**0.5)
        self.gradient_checkpointing = False
        #: Number format of the tokens between the blocks' layers, the residual stream.
        self.stream_dtype = torch.float32
        self._rotary: tuple[tuple[int, int, int, torch.device], Rotary] | None = None

    def embed_conditions(
        self,
        latent_shape: tuple[int, int, int],
        encoder_hidden_states: Tensor,
        encoder_hidden_states_image: Tensor,
        audio_windows: Tensor | None = None,
        speaker_masks: Tensor | None = None,
    ) -> TransformerConditions:
        """Embed the conditions of one guidance branch for latents of shape (T, h, w), once per window.

        The other arguments are those of forward. Uses the module's own call, so that hooks on the root (offloading) run
        as in a forward.
        """
        conditions: TransformerConditions = self(
            latent_shape=latent_shape,
            encoder_hidden_states=encoder_hidden_states,
            encoder_hidden_states_image=encoder_hidden_states_image,
            audio_windows=audio_windows,
            speaker_masks=speaker_masks,
        )
        return conditions

    @apply_lora_scale("attention_kwargs")
    def forward(
        self,
        hidden_states: Tensor | None = None,
        timestep: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_hidden_states_image: Tensor | None = None,
        audio_windows: Tensor | None = None,
        speaker_masks: Tensor | None = None,
        conditions: TransformerConditions | Sequence[TransformerConditions] | None = None,
        attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
        latent_shape: tuple[int, int, int] | None = None,
    ) -> Transformer2DModelOutput | tuple[Tensor] | TransformerConditions:
        """Predict the velocity of noisy latents.

        Args:
            hidden_states: (1, in_channels, T, h, w): noisy latents, mask, condition latents along the channels.
            timestep: (1,), 0..1000, float32 (an integer or bfloat16 timestep would be rounded).
            encoder_hidden_states: text features without padding, (1, at most text_len, text_dim).
            encoder_hidden_states_image: image features, (1, image_tokens, image_dim).
            audio_windows: (n, F, audio_window, audio_layers, audio_channels) for n speakers and
                F = 1 + vae_scale_temporal * (T - 1) pixel frames; None is silence: zeros of one speaker.
            speaker_masks: (n + 1, h, w), inside where above 0, last row the background. Used when n is 2 or more;
                None: every token attends to all speakers equally. On the CPU, whatever the network's device: only
                what is computed from them is moved.
            conditions: result of `embed_conditions`, instead of the four arguments above. A sequence of B of them for
                latents of the same shape makes one forward of a batch; `hidden_states` may then have B samples, or one
                that all conditions share.
            attention_kwargs: {"scale": s} scales LoRA adapters in this forward.
            return_dict: False returns a tuple of the sample.
            latent_shape: (T, h, w) instead of `hidden_states`: only embed the conditions and return them.

        Returns:
            `sample` (B, out_channels, T, h, w), float32.

        Raises:
            RequestError: a tensor has the wrong shape; the argument is named.
        """
        if latent_shape is not None:
            return self._embed(
                latent_shape, encoder_hidden_states, encoder_hidden_states_image, audio_windows, speaker_masks
            )
        if hidden_states is None or timestep is None:
            raise RequestError("a forward needs latents and a timestep", field="hidden_states, timestep")
        batch = list(conditions) if isinstance(conditions, Sequence) else [] if conditions is None else [conditions]
        shape = self._check_latents(hidden_states, timestep, len(batch))
        if not batch:
            batch = [
                self._embed(shape, encoder_hidden_states, encoder_hidden_states_image, audio_windows, speaker_masks)
            ]
        for one in batch:
            if one.latent_shape != shape:
                raise RequestError(
                    f"conditions were embedded for latents of {one.latent_shape}, not {shape}", field="conditions"
                )
            if len(batch) > 1 and one.shard is not None:
                raise RequestError("several processes share forwards of one sample only", field="conditions")

        temb, time_proj = self.condition_embedder(timestep)
        tokens = self.patch_embedding(hidden_states.to(self.patch_embedding.weight.dtype))
        tokens = tokens.flatten(2).transpose(1, 2).to(self.stream_dtype).contiguous()
        first, shard = batch[0], batch[0].shard
        if shard is not None:
            tokens = shard.select(tokens)
        arguments: tuple[Any, ...] = (first.context, time_proj, first.rotary, first.audio, first.speakers, shard)
        if len(batch) > 1:
            tokens = tokens.expand(len(batch), -1, -1)
            arguments = (torch.cat([one.context for one in batch]), time_proj, first.rotary, *_listed(batch), None)
        for block in self.blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                tokens = self._gradient_checkpointing_func(block, tokens, *arguments)
            else:
                tokens = block(tokens, *arguments)

        shift, scale = (modulation_table(self) + temb).unbind(0)
        patches = self.proj_out(self.norm_out(tokens, shift, scale, self.proj_out.weight.dtype)).float()
        if shard is not None:
            patches = shard.gather(patches)
        sample = self._unpatchify(patches, shape)
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)

    def enable_cache(self, config: Any) -> None:
        """Switch on one of diffusers' step caches.

        TaylorSeer without patterns and not in lite mode works on all attentions of the blocks. Its own patterns match
        only names that end in "attn", which the audio attention alone has.
        """
        from diffusers import TaylorSeerCacheConfig

        if isinstance(config, TaylorSeerCacheConfig) and not config.use_lite_mode:
            named = (config.cache_identifiers, config.skip_predict_identifiers)
            if all(patterns is None for patterns in named):
                config = replace(config, cache_identifiers=[_ATTENTIONS])
        super().enable_cache(config)

    def fuse_qkv_projections(self) -> None:
        """Raise ConfigError: the attentions compute with separate projections, which LoRAs and quantisation change."""
        raise ConfigError(
            "the projections of this network's attentions cannot be fused",
            field="fuse_qkv_projections",
            hint="leave it out",
        )

    def _unpatchify(self, patches: Tensor, shape: tuple[int, int, int]) -> Tensor:
        t, h, w = self.config.patch_size
        frames, rows, columns = shape[0] // t, shape[1] // h, shape[2] // w
        patches = patches.view(-1, frames, rows, columns, t, h, w, self.config.out_channels)
        return patches.permute(0, 7, 1, 4, 2, 5, 3, 6).reshape(-1, self.config.out_channels, *shape)

    def _embed(
        self,
        shape: tuple[int, int, int],
        text: Tensor | None,
        image: Tensor | None,
        windows: Tensor | None,
        masks: Tensor | None,
    ) -> TransformerConditions:
        config, dtype, device = self.config, self._compute_dtype(), self.patch_embedding.weight.device
        frames, rows, columns = self._check_grid(shape)
        if text is None or image is None:
            raise RequestError(
                "text and image features are needed", field="encoder_hidden_states, encoder_hidden_states_image"
            )
        _check_shape("encoder_hidden_states", text, (1, None, config.text_dim))
        _check_shape("encoder_hidden_states_image", image, (1, config.image_tokens, config.image_dim))
        if text.shape[1] > config.text_len:
            raise RequestError(
                f"{text.shape[1]} text tokens", field="encoder_hidden_states", hint=f"at most {config.text_len}"
            )
        # The reference pads before the projection and masks nothing: tokens attend to padding rows.
        text = F.pad(text.to(dtype), (0, 0, 0, config.text_len - text.shape[1]))
        text_tokens, image_tokens = self.condition_embedder(text=text, image=image.to(dtype))

        features = (config.audio_window, config.audio_layers, config.audio_channels)
        pixel_frames = 1 + config.vae_scale_temporal * (shape[0] - 1)
        if windows is None:
            windows = torch.zeros(1, pixel_frames, *features, device=device)
        _check_shape("audio_windows", windows, (None, pixel_frames, *features))
        audio = self.audio_proj(windows.to(dtype))  # (n, T, tokens, dim)
        speakers = None
        if masks is not None and windows.shape[0] > 1:
            _check_shape("speaker_masks", masks, (windows.shape[0] + 1, *shape[1:]))
            speakers = prepare_speakers(
                token_masks(masks, rows, columns),
                config.audio_tokens,
                config.attention_head_dim,
                config.class_range,
                config.class_interval,
                # torch's CPU kernel is as fast in float32; on a GPU only 16-bit dtypes have a fast kernel.
                torch.float32 if device.type == "cpu" else dtype,
                device,
            )
        return TransformerConditions(
            context=torch.cat([image_tokens.to(dtype), text_tokens], dim=1),
            audio=audio.transpose(0, 1).flatten(1, 2).to(dtype),
            rotary=self._rotary_table(frames, rows, columns, device),
            speakers=speakers,
            latent_shape=shape,
        )

    def _rotary_table(self, frames: int, rows: int, columns: int, device: torch.device) -> Rotary:
        if torch.compiler.is_compiling():
            # A table that is kept would be a constant of the graph, with a guard on whether one is there already.
            return rotary_grid(frames, rows, columns, self.config.attention_head_dim, device)
        # All branches of a window, and usually all windows, have the same size and share one table.
        size = (frames, rows, columns, device)
        if self._rotary is None or self._rotary[0] != size:
            # A later training step may also use it.
            with torch.inference_mode(False):
                self._rotary = size, rotary_grid(frames, rows, columns, self.config.attention_head_dim, device)
        return self._rotary[1]

    def forget_tables(self) -> None:
        """Release the tables that forwards of one size share; the next forward creates them again."""
        self._rotary = None

    def _compute_dtype(self) -> torch.dtype:
        # A layer that is not in float32, and not stored in another dtype by layerwise casting or quantisation.
        weight: Tensor = self.condition_embedder.text_embedder.linear_1.weight
        dtype, device = weight.dtype, weight.device.type
        if dtype.itemsize == 2 and torch.is_autocast_enabled(device):
            # Layers then answer in autocast's dtype, and it joins no tensors of two 16-bit dtypes.
            return torch.get_autocast_dtype(device)
        return dtype

    def _check_latents(self, latents: Tensor, timestep: Tensor, batch: int) -> tuple[int, int, int]:
        samples = batch if batch > 1 and latents.shape[0] == batch else 1
        _check_shape("hidden_states", latents, (samples, self.config.in_channels, None, None, None))
        _check_shape("timestep", timestep, (1,))
        frames, height, width = latents.shape[2:]
        # Not int(): in a graph of all sizes it would fix this one.
        return frames, height, width

    def _check_grid(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        patch = self.config.patch_size
        if any(size < step or size % step for size, step in zip(shape, patch, strict=True)):
            raise RequestError(
                f"latents of {shape} cannot be divided into patches of {tuple(patch)}", field="latent_shape"
            )
        grid = (shape[0] // patch[0], shape[1] // patch[1], shape[2] // patch[2])
        if max(grid) > self.config.rope_max_seq_len:
            raise RequestError(
                f"{max(grid)} tokens along one axis",
                field="latent_shape",
                hint=f"at most {self.config.rope_max_seq_len}",
            )
        return grid


def _listed(batch: Sequence[TransformerConditions]) -> tuple[list[Tensor], list[Speakers | None] | None]:
    """Return audio tokens and speakers of a batch; None if no sample has several speakers."""
    speakers = [one.speakers for one in batch]
    return [one.audio for one in batch], None if all(one is None for one in speakers) else speakers


def _check_shape(name: str, tensor: Tensor, expected: tuple[int | None, ...]) -> None:
    batch = " (one sample; a batch takes as many embedded conditions)" if expected[0] == 1 else ""
    check_shape(name, tensor, expected, batch)


def _check_config(
    *,
    patch_size: tuple[int, ...],
    head_dim: int,
    qk_norm: str,
    added_kv: bool,
    pos_embed_seq_len: int | None,
    audio_window: int,
) -> None:
    rules = (
        (len(patch_size) == 3 and patch_size[0] == 1, "patch_size", "must be (1, height, width)"),
        (head_dim % 2 == 0 and head_dim >= 6, "attention_head_dim", "must be even and at least 6"),
        (qk_norm == "rms_norm_across_heads", "qk_norm", "only rms_norm_across_heads is supported"),
        (added_kv, "added_kv_proj_dim", "must be the model's width or be left out"),
        (pos_embed_seq_len is None, "pos_embed_seq_len", "image position embeddings are not supported"),
        (audio_window % 2 == 1, "audio_window", "must be odd: the middle is the frame itself"),
    )
    for holds, field, hint in rules:
        if not holds:
            raise ConfigError("the transformer cannot be built with this config", field=field, hint=hint)
