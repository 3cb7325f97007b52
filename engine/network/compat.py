"""The only place for imports from diffusers that are not in its public API.

tests/network/test_compat.py checks each name, so an upgrade of diffusers that moves one breaks only here.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, TypeVar

from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.attention import AttentionMixin, AttentionModuleMixin, FeedForward
from diffusers.models.attention_dispatch import (
    AttentionBackendName,
    SeqAllToAllDim,
    _check_attention_backend_requirements,
    _maybe_download_kernel_for_backend,
    dispatch_attention_fn,
)
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    WanAttentionBlock,
    WanResample,
    WanResidualBlock,
    WanRMS_norm,
    WanUpsample,
    unpatchify,
)
from diffusers.models.cache_utils import CacheMixin
from diffusers.models.embeddings import PixArtAlphaTextProjection, TimestepEmbedding
from diffusers.models.normalization import FP32LayerNorm
from diffusers.models.transformers.transformer_wan import WanAttention, WanImageEmbedding
from diffusers.utils.peft_utils import apply_lora_scale as _apply_lora_scale

T = TypeVar("T", bound=type)

check_attention_backend_requirements = _check_attention_backend_requirements
fetch_kernel = _maybe_download_kernel_for_backend

__all__ = [
    "AttentionBackendName",
    "AttentionMixin",
    "AttentionModuleMixin",
    "CacheMixin",
    "FP32LayerNorm",
    "FeedForward",
    "PeftAdapterMixin",
    "PixArtAlphaTextProjection",
    "SeqAllToAllDim",
    "TimestepEmbedding",
    "TransformerBlockMetadata",
    "TransformerBlockRegistry",
    "WanAttention",
    "WanAttentionBlock",
    "WanImageEmbedding",
    "WanRMS_norm",
    "WanResample",
    "WanResidualBlock",
    "WanUpsample",
    "apply_lora_scale",
    "check_attention_backend_requirements",
    "convert_wan_vae_to_diffusers",
    "dispatch_attention_fn",
    "fetch_kernel",
    "gguf_parts",
    "register_cached_block",
    "unpatchify",
]


def apply_lora_scale(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return diffusers' decorator of a forward, which scales PEFT's layers by `scale` in the keyword argument `name`.

    diffusers imports PEFT for it in every forward. Here a forward without that argument does not: while PEFT has not
    been imported there are no such layers.
    """

    def decorate(forward: Callable[..., Any]) -> Callable[..., Any]:
        scaled = _apply_lora_scale(name)(forward)

        @functools.wraps(forward)
        def call(self: Any, *arguments: Any, **options: Any) -> Any:
            plain = options.get(name) is None and "peft" not in sys.modules
            return (forward if plain else scaled)(self, *arguments, **options)

        return call

    return decorate


def register_cached_block(block: type) -> None:
    """Register `block` for diffusers' step caches: it takes `hidden_states` first and returns one tensor.

    The registry is looked up by exact class, so every block class is registered where it is defined.
    """
    TransformerBlockRegistry.register(
        block, TransformerBlockMetadata(return_hidden_states_index=0, return_encoder_hidden_states_index=None)
    )


def known_to_diffusers(model: T) -> T:
    """Have `diffusers.AutoModel`, and pipelines that were saved with it, find a model's class by its name.

    diffusers looks the class of a config up among its own names only. It must have been imported before.
    """
    import diffusers

    setattr(diffusers, model.__name__, model)
    return model


def convert_wan_vae_to_diffusers(weights: dict[str, Any]) -> dict[str, Any]:
    """Return the tensors of Wan's own VAE file under diffusers' names."""
    # Its module imports every scheduler.
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers as convert

    converted: dict[str, Any] = convert(weights)
    return converted


def gguf_parts() -> SimpleNamespace:
    """Return diffusers' `parameter`, `linear` and `dequantize` of packed weights, which import the package gguf."""
    from diffusers.quantizers.gguf.utils import GGUFLinear, GGUFParameter, dequantize_gguf_tensor

    return SimpleNamespace(parameter=GGUFParameter, linear=GGUFLinear, dequantize=dequantize_gguf_tensor)
