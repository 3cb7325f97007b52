"""Quantisation of a loaded network on the fly, and changes of weights that are quantised."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from engine.errors import ConfigError, MissingExtra
from engine.loading.quanto import quantise


def quantize_int8(model: nn.Module) -> int:
    """Store the linear layers of all blocks as int8 with one scale per output row, in place; return their number.

    Weights only, through torchao; computing stays in the model's dtype. The condition embedder, the audio projection,
    the head and all norms stay as they are: small, and the most sensitive. Merge LoRAs before. Raises MissingExtra
    without torchao.
    """
    try:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_
    except ImportError as error:
        raise MissingExtra("quant=int8", "torchao", "quant") from error
    layers = [name for name, module in model.named_modules() if is_block_linear(module, name)]
    # Without set_inductor_config=False it would change the compiler's settings for the whole process.
    quantize_(model, Int8WeightOnlyConfig(set_inductor_config=False), filter_fn=is_block_linear)
    return len(layers)


def is_block_linear(module: nn.Module, name: str) -> bool:
    """Say whether the layer `name` of the network is one of those that are stored as int8."""
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
        raise ConfigError("a GGUF file takes no merged LoRAs", field="lora.mode", hint="use lora.mode=runtime")
    if not hasattr(weight, "qdata"):
        owner._parameters[leaf].data = change(weight)  # type: ignore[union-attr]
        return
    dense = change(weight.dequantize(torch.float32))  # type: ignore[call-arg]
    again = quantise(dense, weight.qdata.dtype).kept(weight.dtype)
    owner._parameters[leaf] = nn.Parameter(again, requires_grad=False)
