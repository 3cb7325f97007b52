"""The only place for imports from diffusers that are not in its public API.

tests/multitalk/test_compat.py checks each name, so an upgrade of diffusers that moves one breaks only here.
"""

from __future__ import annotations

from types import SimpleNamespace

from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.loaders import PeftAdapterMixin
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
from diffusers.models.attention import AttentionMixin, AttentionModuleMixin, FeedForward
from diffusers.models.attention_dispatch import (
    AttentionBackendName,
    SeqAllToAllDim,
    _check_attention_backend_requirements,
    _maybe_download_kernel_for_backend,
    dispatch_attention_fn,
)
from diffusers.models.autoencoders.autoencoder_kl_wan import WanRMS_norm, WanUpsample
from diffusers.models.cache_utils import CacheMixin
from diffusers.models.embeddings import PixArtAlphaTextProjection, TimestepEmbedding
from diffusers.models.normalization import FP32LayerNorm
from diffusers.models.transformers.transformer_wan import WanAttention, WanImageEmbedding
from diffusers.utils.peft_utils import apply_lora_scale

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
    "WanImageEmbedding",
    "WanRMS_norm",
    "WanUpsample",
    "apply_lora_scale",
    "check_attention_backend_requirements",
    "convert_wan_vae_to_diffusers",
    "dispatch_attention_fn",
    "fetch_kernel",
    "gguf_parts",
    "register_cached_block",
]


def register_cached_block(block: type) -> None:
    """Register `block` for diffusers' step caches: it takes `hidden_states` first and returns one tensor.

    The registry is looked up by exact class, so every block class is registered where it is defined.
    """
    TransformerBlockRegistry.register(
        block, TransformerBlockMetadata(return_hidden_states_index=0, return_encoder_hidden_states_index=None)
    )


def gguf_parts() -> SimpleNamespace:
    """Return diffusers' `parameter`, `linear` and `dequantize` of packed weights, which import the package gguf."""
    from diffusers.quantizers.gguf.utils import GGUFLinear, GGUFParameter, dequantize_gguf_tensor

    return SimpleNamespace(parameter=GGUFParameter, linear=GGUFLinear, dequantize=dequantize_gguf_tensor)
