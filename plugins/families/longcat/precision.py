"""In which number formats the network's parameters are kept."""

from __future__ import annotations

import torch
from torch import nn

from engine.errors import ConfigError

#: Modules that stay in float32: dot-separated parts of their names.
KEPT_IN_FLOAT32 = (
    "x_embedder",
    "t_embedder",
    "final_layer",
    "norm",
    "q_norm",
    "k_norm",
    "pre_crs_attn_norm",
    "pre_video_crs_attn_norm",
    "pre_audio_crs_attn_norm",
)


def kept_in_float32(name: str) -> bool:
    """Return whether `name` stays float32 in any model dtype: patches, time, norms, head.

    The blocks' modulation layers compute in float32 from weights of any dtype: they are a sixth of the network.
    """
    return not set(name.split(".")).isdisjoint(KEPT_IN_FLOAT32)


def cast_model(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Cast a loaded model in place to `dtype` except its float32 parts. Raises ConfigError for float16.

    Values of the published network's feed-forward overflow float16.
    """
    if dtype == torch.float16:
        raise ConfigError("this network overflows float16", field="dtype", hint="use bfloat16 or float32")
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(torch.float32 if kept_in_float32(name) else dtype)
    return model


def is_quantised_linear(module: nn.Module, name: str) -> bool:
    """Say whether the layer `name` may be kept in 8 bits: the blocks' linear layers, as in the published int8 file."""
    return name.startswith("blocks.") and isinstance(module, nn.Linear)
