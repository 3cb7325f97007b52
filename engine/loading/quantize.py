"""Which layers of a network are quantised, and changes of weights that are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from engine.errors import ConfigError
from engine.loading.quanto import quantise


def is_block_linear(module: nn.Module, name: str) -> bool:
    """Say whether the layer `name` of the network is one of those that are quantised: the linear ones of all blocks.

    The condition embedder, the audio projection, the head and all norms stay: small, and the most sensitive.
    """
    return name.startswith("blocks.") and isinstance(module, nn.Linear)


def shape_of(weight: Any) -> tuple[int, ...]:
    """Return the shape of a weight, of one that a GGUF file packs into bytes as well."""
    return tuple(getattr(weight, "quant_shape", weight.shape))


def change_weight(model: nn.Module, name: str, change: Callable[[Tensor], Tensor]) -> None:
    """Replace the parameter `name` by `change` of it; what is quantised is unpacked, changed and quantised again.

    Raises ConfigError for weights of a GGUF file, which cannot be packed again.
    """
    module, _, leaf = name.rpartition(".")
    owner = model.get_submodule(module)
    weight: Tensor = owner._parameters[leaf].data  # type: ignore[union-attr]
    if hasattr(weight, "quant_type"):
        raise ConfigError("LoRAs cannot be merged into a GGUF file", field="lora.mode", hint="use lora.mode=runtime")
    if not hasattr(weight, "qdata"):
        owner._parameters[leaf].data = change(weight)  # type: ignore[union-attr]
        return
    dense = change(weight.dequantize(torch.float32))  # type: ignore[call-arg]
    again = quantise(dense, weight.qdata.dtype).kept(weight.dtype)
    owner._parameters[leaf] = nn.Parameter(again, requires_grad=False)
