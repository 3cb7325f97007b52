"""Quantisation of a loaded network, on the fly."""

from __future__ import annotations

from torch import nn

from engine.errors import MissingExtra


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
