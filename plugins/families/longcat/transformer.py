"""The diffusion transformer of LongCat-Video-Avatar: a text-to-video network with an audio attention in every block."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional as F

from engine.errors import RequestError
from engine.network.audio_projection import AudioProjection
from engine.network.compat import CacheMixin, PeftAdapterMixin, known_to_diffusers
from engine.network.embeddings import Rotary, rotary_grid
from engine.network.shapes import check_shape
from engine.network.speakers import Speakers, token_masks
from plugins.families.longcat.attention import KeyValueCache
from plugins.families.longcat.checks import check_config
from plugins.families.longcat.frames import FrameLayout
from plugins.families.longcat.layers import (
    AvatarBlock,
    Head,
    PatchEmbedder,
    TextEmbedder,
    TimeEmbedder,
    feed_forward_width,
)
from plugins.families.longcat.precision import KEPT_IN_FLOAT32
from plugins.families.longcat.speakers import prepare_tracks


@dataclass(frozen=True)
class AvatarConditions:
    """What a forward needs in addition to latents, time and cache; once per window and guidance pass.

    `context`: rows of the text, (1, rows, D). `audio`: audio tokens of every noisy frame, voices one after the other,
    (noisy frames, n * context_tokens, output_dim). `rotary`: float32 table of the grid of all frames of `layout`.
    `speakers`: None unless two speak. `latent_shape`: (T, h, w) of all frames.
    """

    context: Tensor
    audio: Tensor
    rotary: Rotary
    speakers: Speakers | None
    layout: FrameLayout
    latent_shape: tuple[int, int, int]


@known_to_diffusers
class AvatarTransformer3DModel(ModelMixin, ConfigMixin, PeftAdapterMixin, CacheMixin):  # type: ignore[misc]
    """The network of Avatar 1.0 and 1.5, with the published names of arguments and parameters.

    The defaults are the published model 1.5. Entries of a published config that are not arguments (kernels, block
    sparsity) have no effect. Raises ConfigError for unsupported sizes.
    """

    _supports_gradient_checkpointing = False
    _no_split_modules = ["AvatarBlock"]
    _repeated_blocks = ["AvatarBlock"]
    _keep_in_fp32_modules = list(KEPT_IN_FLOAT32)
    _skip_layerwise_casting_patterns = ["embedder", "norm", "audio_proj", "adaLN", "final_layer"]

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        in_channels: int = 16,
        out_channels: int = 16,
        hidden_size: int = 4096,
        depth: int = 48,
        num_heads: int = 32,
        caption_channels: int = 4096,
        mlp_ratio: int = 4,
        adaln_tembed_dim: int = 512,
        frequency_embedding_size: int = 256,
        patch_size: tuple[int, int, int] = (1, 2, 2),
        text_tokens_zero_pad: bool = True,
        audio_window: int = 5,
        audio_block: int = 5,
        audio_channel: int = 1280,
        intermediate_dim: int = 512,
        output_dim: int = 768,
        context_tokens: int = 32,
        vae_scale: int = 4,
        audio_prenorm: bool = False,
        class_range: int = 24,
        class_interval: int = 4,
        text_len: int = 512,
    ) -> None:
        super().__init__()
        check_config(hidden_size, num_heads, tuple(patch_size), audio_window)
        patch = (1, patch_size[1], patch_size[2])  # a list where it was read from JSON
        self.x_embedder = PatchEmbedder(patch, in_channels, hidden_size)
        self.t_embedder = TimeEmbedder(frequency_embedding_size, adaln_tembed_dim)
        self.y_embedder = TextEmbedder(caption_channels, hidden_size)
        self.audio_proj = AudioProjection(
            window=audio_window,
            stride=vae_scale,
            layers=audio_block,
            channels=audio_channel,
            intermediate_dim=intermediate_dim,
            output_dim=output_dim,
            tokens=context_tokens,
        )
        inner = feed_forward_width(hidden_size, mlp_ratio)
        self.blocks = nn.ModuleList(
            AvatarBlock(hidden_size, inner, num_heads, adaln_tembed_dim, output_dim, audio_prenorm)
            for _ in range(depth)
        )
        self.final_layer = Head(hidden_size, adaln_tembed_dim, out_channels * math.prod(patch))
        #: Number format of the tokens between the blocks' layers, the residual stream.
        self.stream_dtype = torch.float32
        #: Number format to which times are rounded. The public inference rounds them to bfloat16, a step of 4 at 1000.
        self.time_dtype = torch.float32
        self._rotary: tuple[tuple[tuple[int, ...], int, int, torch.device], Rotary] | None = None

    def embed_conditions(
        self,
        latent_shape: tuple[int, int, int],
        layout: FrameLayout,
        encoder_hidden_states: Tensor,
        audio_windows: Tensor,
        speaker_masks: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
    ) -> AvatarConditions:
        """Embed the conditions of one guidance pass for latents of shape (T, h, w), once per window.

        T counts all frames of `layout`; the other arguments are those of `forward`. Uses the module's own call, so that
        hooks on the root (offloading) run as in a forward.
        """
        return cast(
            "AvatarConditions",
            self(
                latent_shape=latent_shape,
                layout=layout,
                encoder_hidden_states=encoder_hidden_states,
                encoder_attention_mask=encoder_attention_mask,
                audio_windows=audio_windows,
                speaker_masks=speaker_masks,
            ),
        )

    def fill_cache(self, latents: Tensor, layout: FrameLayout) -> KeyValueCache:
        """Return keys and values of the given frames (1, channels, C, h, w) of `layout`, once per window."""
        return cast("KeyValueCache", self(hidden_states=latents, layout=layout))

    def forward(
        self,
        hidden_states: Tensor | None = None,
        timestep: Tensor | None = None,
        conditions: AvatarConditions | Sequence[AvatarConditions] | None = None,
        cache: KeyValueCache | None = None,
        return_dict: bool = False,
        layout: FrameLayout | None = None,
        latent_shape: tuple[int, int, int] | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        audio_windows: Tensor | None = None,
        speaker_masks: Tensor | None = None,
    ) -> tuple[Tensor] | AvatarConditions | KeyValueCache:
        """Predict data - noise of the noisy frames: the opposite sign of the engine's velocity.

        Args:
            hidden_states: (1 or B, in_channels, T, h, w): the reference, other given frames, noisy frames. With `cache`
                the noisy frames only; with `layout` and no conditions the given frames only, to fill a cache.
            timestep: 0 .. 1000, float32: (1 or B,) of the noisy frames, given ones have 0; or (1 or B, T), of each.
            conditions: result of `embed_conditions`; a sequence of B of them makes one forward of a batch.
            cache: result of `fill_cache` for the same given frames; shared by all samples.
            return_dict: False; there is nothing to return but the sample.
            layout: the frames, to fill a cache or to embed conditions.
            latent_shape: (T, h, w) of all frames: only embed the conditions and return them.
            encoder_hidden_states: text features, (1, rows, caption_channels). Without a mask these are the rows of the
                prompt's own tokens, and rows of zeros up to text_len are added after the text layers.
            encoder_attention_mask: (1, rows), 0 for padded rows.
            audio_windows: (n, F, audio_window, audio_block, audio_channel) for n voices and F = 1 + vae_scale *
                (T - 1) pixel frames, where T does not count the reference. Zeros are silence.
            speaker_masks: (K, H, W) of any size, inside where above 0: two speakers, the background, bystanders. Used
                for two voices, or three with the bystanders' silent one; needs a given frame. On the CPU.

        Returns:
            A tuple of the sample, (B, out_channels, noisy frames, h, w), float32.

        Raises:
            RequestError: a tensor has the wrong shape, or parts do not belong together; the argument is named.
        """
        if return_dict:
            raise RequestError("the forward returns a tuple", field="return_dict", hint="leave it out")
        if latent_shape is not None:
            return self._embed(
                latent_shape, layout, encoder_hidden_states, encoder_attention_mask, audio_windows, speaker_masks
            )
        if hidden_states is None:
            raise RequestError("a forward needs latents", field="hidden_states")
        if conditions is None:
            return self._fill(hidden_states, layout)
        batch = list(conditions) if isinstance(conditions, Sequence) else [conditions]
        return (self._predict(hidden_states, timestep, batch, cache),)

    def _predict(
        self, latents: Tensor, timestep: Tensor | None, batch: Sequence[AvatarConditions], cache: KeyValueCache | None
    ) -> Tensor:
        first, size = batch[0], len(batch)
        for one in batch:
            if (one.latent_shape, one.layout) != (first.latent_shape, first.layout):
                raise RequestError("the conditions of a batch are for other latents", field="conditions")
            if one.context.shape != first.context.shape:
                raise RequestError(
                    "the texts of a batch have different numbers of rows",
                    field="conditions",
                    hint="use text_tokens_zero_pad, or one forward for each",
                )
        layout = first.layout
        if cache is not None and cache.layout != layout:
            raise RequestError("the cache was filled for other frames", field="cache")
        given = layout.given if cache is None else 0
        frames, rows, columns = given + layout.noisy, *first.latent_shape[1:]
        check_shape("hidden_states", latents, (None, self.config.in_channels, frames, rows, columns))
        for name, tensor in (("hidden_states", latents), ("timestep", timestep)):
            if tensor is None or tensor.shape[0] not in (1, size):
                raise RequestError(f"{name} does not have a batch of 1 or {size}", field=name)
        assert timestep is not None
        temb = self._embed_time(timestep, frames, given)
        tokens = self.x_embedder(latents).to(self.stream_dtype).contiguous().expand(size, -1, -1)
        speaking = [one.speakers for one in batch]
        context = first.context if size == 1 else torch.cat([one.context for one in batch])
        for index, block in enumerate(self.blocks):
            tokens = block(
                tokens,
                context.dtype,
                temb,
                first.rotary,
                layout,
                context,
                [one.audio for one in batch],
                None if all(one is None for one in speaking) else speaking,
                cached=None if cache is None else cache.entries[index],
            )
        # Of given frames nothing is wanted.
        tokens = tokens[:, tokens.shape[1] // frames * given :]
        patches = self.final_layer(tokens, temb[:, given:])
        return self._unpatchify(patches, (layout.noisy, rows, columns))

    def _fill(self, latents: Tensor, layout: FrameLayout | None) -> KeyValueCache:
        if layout is None or not layout.given:
            raise RequestError("a cache needs given frames", field="layout", hint="or give conditions for a forward")
        check_shape("hidden_states", latents, (1, self.config.in_channels, layout.given, None, None))
        given = FrameLayout(layout.given, layout.given, layout.reference, layout.position, layout.hidden_range)
        rows, columns = self._check_grid((layout.given, latents.shape[3], latents.shape[4]))
        # Given frames come first. The window's own table is there already: another one would make the host wait.
        window = self._rotary_table(layout, rows, columns, latents.device)
        rotary = Rotary(window.turns[:, : layout.given * rows * columns])
        temb = self._embed_time(torch.zeros(1, device=latents.device), layout.given, 0)
        tokens = self.x_embedder(latents).to(self.stream_dtype).contiguous()
        cache = KeyValueCache(layout)
        for block in self.blocks:
            tokens = block(tokens, self._compute_dtype(), temb, rotary, given, kept=cache.entries)
        return cache

    def _embed_time(self, timestep: Tensor, frames: int, given: int) -> Tensor:
        """Embed the times of all frames of a sequence: (B, T, E), or (B, 1, E) if all have the same by design."""
        timestep = timestep.to(self.time_dtype).float()
        if timestep.ndim == 1:
            timestep = timestep[:, None]
            if given:
                timestep = timestep.expand(-1, frames).clone()
                timestep[:, :given] = 0
        elif timestep.ndim != 2 or timestep.shape[1] != frames:
            raise RequestError(
                f"shape {tuple(timestep.shape)}", field="timestep", hint=f"one time, or one for each of {frames} frames"
            )
        embedded: Tensor = self.t_embedder(timestep)
        return embedded

    def _embed(
        self,
        shape: tuple[int, int, int],
        layout: FrameLayout | None,
        text: Tensor | None,
        text_mask: Tensor | None,
        windows: Tensor | None,
        masks: Tensor | None,
    ) -> AvatarConditions:
        config, dtype, device = self.config, self._compute_dtype(), self.x_embedder.proj.weight.device
        if layout is None or text is None or windows is None:
            raise RequestError(
                "frames, text and voices are needed", field="layout, encoder_hidden_states, audio_windows"
            )
        if layout.total != shape[0] or not layout.noisy:
            raise RequestError(
                f"{shape[0]} latent frames, {layout.noisy} noisy of {layout.total}", field="latent_shape"
            )
        rows, columns = self._check_grid(shape)
        pixel_frames = 1 + config.vae_scale * (layout.total - int(layout.reference) - 1)
        features = (config.audio_window, config.audio_block, config.audio_channel)
        check_shape("audio_windows", windows, (None, pixel_frames, *features))
        speakers = None
        if windows.shape[0] > 1:
            speakers = self._speakers(layout, windows.shape[0], masks, rows, columns, device)
        audio = self.audio_proj(windows.to(dtype))[:, -layout.noisy :]
        return AvatarConditions(
            context=self._context(text, text_mask, dtype),
            audio=audio.transpose(0, 1).flatten(1, 2).to(dtype),
            rotary=self._rotary_table(layout, rows, columns, device),
            speakers=speakers,
            layout=layout,
            latent_shape=shape,
        )

    def _speakers(
        self, layout: FrameLayout, tracks: int, masks: Tensor | None, rows: int, columns: int, device: torch.device
    ) -> Speakers:
        config = self.config
        if masks is None:
            raise RequestError(f"{tracks} voices without masks", field="speaker_masks", hint="mark each speaker")
        if not layout.given:
            raise RequestError(
                f"{tracks} voices and no picture", field="layout.given", hint="two speakers are found in a given frame"
            )
        check_shape("speaker_masks", masks, (None, None, None))
        return prepare_tracks(
            token_masks(masks, rows, columns),
            tracks,
            config.context_tokens,
            config.hidden_size // config.num_heads,
            config.class_range,
            config.class_interval,
            # As in MultiTalk: exact on a CPU; on a GPU only 16-bit dtypes have a fast kernel.
            torch.float32 if device.type == "cpu" else self._compute_dtype(),
            device,
        )

    def _context(self, text: Tensor, mask: Tensor | None, dtype: torch.dtype) -> Tensor:
        config = self.config
        check_shape("encoder_hidden_states", text, (1, None, config.caption_channels))
        if mask is not None:
            check_shape("encoder_attention_mask", mask, (1, text.shape[1]))
        elif text.shape[1] > config.text_len:
            raise RequestError(
                f"{text.shape[1]} text tokens", field="encoder_hidden_states", hint=f"at most {config.text_len}"
            )
        context: Tensor = self.y_embedder(text.to(dtype))
        if not config.text_tokens_zero_pad:
            return context if mask is None else context[:, mask[0] != 0]
        if mask is None:
            return F.pad(context, (0, 0, 0, config.text_len - text.shape[1]))
        # Masked rows stay in the attention: their keys and values are those of the biases.
        return context * mask[:, :, None].to(context)

    def _rotary_table(self, layout: FrameLayout, rows: int, columns: int, device: torch.device) -> Rotary:
        head_dim = self.config.hidden_size // self.config.num_heads
        if torch.compiler.is_compiling():
            # A table that is kept would be a constant of the graph, with a guard on whether one is there already.
            return rotary_grid(layout.total, rows, columns, head_dim, device, layout.times)
        # All passes of a window, and usually all windows but the first, share one table.
        size = (layout.times, rows, columns, device)
        if self._rotary is None or self._rotary[0] != size:
            with torch.inference_mode(False):
                self._rotary = size, rotary_grid(layout.total, rows, columns, head_dim, device, layout.times)
        return self._rotary[1]

    def forget_tables(self) -> None:
        """Release the tables that forwards of one size share; the next forward creates them again."""
        self._rotary = None

    def _unpatchify(self, patches: Tensor, shape: tuple[int, int, int]) -> Tensor:
        t, h, w = self.config.patch_size
        frames, rows, columns = shape[0] // t, shape[1] // h, shape[2] // w
        patches = patches.view(-1, frames, rows, columns, t, h, w, self.config.out_channels)
        return patches.permute(0, 7, 1, 4, 2, 5, 3, 6).reshape(-1, self.config.out_channels, *shape)

    def _compute_dtype(self) -> torch.dtype:
        # A layer that is not in float32, and not quantised.
        return cast("Tensor", self.y_embedder.y_proj[0].weight).dtype

    def _check_grid(self, shape: tuple[int, int, int]) -> tuple[int, int]:
        _, height, width = self.config.patch_size
        if any(size < step or size % step for size, step in zip(shape[1:], (height, width), strict=True)):
            raise RequestError(
                f"latents of {shape} cannot be divided into patches of {tuple(self.config.patch_size)}",
                field="latent_shape",
            )
        return shape[1] // height, shape[2] // width
