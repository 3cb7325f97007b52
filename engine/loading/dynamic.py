"""Layers whose products run in 8 bits: which layers, and their weights."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from engine.errors import ConfigError, MissingExtra
from engine.loading.quanto import quantise
from engine.network import eight_bit

#: "int8" and "fp8", as quantisers name their products -> the values' dtype.
FORMATS = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
#: Parts of the transformer that are not quantised -> why. Linear layers of the blocks are, unless a config names them.
STAYS: Mapping[str, str] = {
    "patch_embedding": "a convolution in float32, the first layer; 0.1 % of the operations",
    "condition_embedder": "embeds time, text and picture: time needs float32, the others run once a window",
    "audio_proj": "embeds the voices, once a window; every block depends on it",
    "scale_shift_table": "modulation tables are no products; they, and all norms, compute in float32",
    "proj_out": "the head, in float32: its errors would go directly to the latents; 0.1 % of the operations",
}
#: Linear layers of the text encoder whose products stay in the model's dtype. T5's inner values have outliers there:
#: transformers keeps this layer in float32 in float16 models (T5's `_keep_in_fp32_modules`).
TEXT_STAYS = ("wo",)
#: Sides of a weight are multiples of this on a GPU: of 8 for int8, of 16 for float8.
_SIDES = 16


def is_text_linear(module: nn.Module, name: str) -> bool:
    """Say whether the layer `name` of the text encoder is quantised: the linear ones of all blocks."""
    return name.startswith("encoder.block.") and isinstance(module, nn.Linear)


def quantise_blocks(
    transformer: nn.Module, products: str, chosen: Callable[[Any, str], bool], keep: Collection[str] = ()
) -> None:
    """Make the layers for which `chosen(layer, name)` is true multiply in `products`, a key of FORMATS, in place.

    A weight that is already stored in that format is used as it is; others are quantised with one scale per row.
    Layers whose names contain one of `keep` are left as they are. Raises ConfigError for a weight in another format,
    or if a name of `keep` is in no layer's name; MissingExtra without torchao.
    """
    names = [name for name, layer in transformer.named_modules() if chosen(layer, name)]
    for part in keep:
        if not any(part in name for name in names):
            known = ", ".join(sorted({name.split(".", 2)[2] for name in names}))
            raise ConfigError(f"no layer's name contains {part!r}", field="quant.keep", hint=f"parts of: {known}")
    for name in names:
        if not any(part in name for part in keep):
            _quantise_layer(transformer.get_submodule(name), name, products)


def quantise_text(text_encoder: nn.Module, products: str) -> None:
    """Do the same for the text encoder; weights of TEXT_STAYS are quantised, but their products are not."""
    for name, layer in list(text_encoder.named_modules()):
        if is_text_linear(layer, name):
            _quantise_layer(layer, name, products, only_weight=name.rpartition(".")[2] in TEXT_STAYS)


def check_layers(network: nn.Module) -> None:
    """Raise ConfigError, naming the layer, for sides that CUDA's kernels do not multiply in 8 bits."""
    for name, layer in network.named_modules():
        weight: Any = getattr(layer, "weight", None)
        if not is_dynamic(weight):
            continue
        if any(side % _SIDES for side in weight.shape):
            sides = " x ".join(map(str, weight.shape))
            raise ConfigError(
                f"{name} is {sides}; on a GPU products in 8 bits need multiples of {_SIDES}",
                field="quant",
                hint=f"quant.keep=[{name.rpartition('.')[2]}], or quant=int8",
            )


def is_dynamic(weight: Any) -> bool:
    """Return whether the products of a weight run in 8 bits."""
    return getattr(type(weight), "multiplies_in_8_bits", False)


def _quantise_layer(layer: Any, name: str, products: str, *, only_weight: bool = False) -> None:
    weight, dtype = layer.weight.data, FORMATS[products]
    if not hasattr(weight, "qdata"):
        made = quantise(weight, dtype)
        data, scale = made.data, made.scale
    else:
        data, scale = weight.qdata, weight.scale
    if data.dtype != dtype:
        raise ConfigError(
            f"{name} is stored as {str(data.dtype).removeprefix('torch.')}, not {products}",
            field="quant.stored",
            hint="choose quant=int8-dynamic for int8 files, quant=fp8-dynamic for float8 files",
        )
    types = _types()
    kind = types[0 if only_weight else 1][dtype]
    kept = kind(data, scale, block_size=[1, data.shape[1]], dtype=weight.dtype)
    layer.weight = nn.Parameter(kept, requires_grad=False)


@cache
def _types() -> tuple[dict[torch.dtype, Any], dict[torch.dtype, Any]]:
    """Return torchao's types, and those whose products run in 8 bits, by dtype. Raises MissingExtra."""
    try:
        from torchao.quantization import Float8Tensor, Int8Tensor
    except ImportError as error:
        raise MissingExtra("quant", "torchao", "quant", why="for weights in 8 bits") from error

    class DynamicInt8(Int8Tensor):  # type: ignore[misc]
        """An int8 weight with one scale per row; its linear layer quantises activations, too."""

        multiplies_in_8_bits = True

    class DynamicFloat8(Float8Tensor):  # type: ignore[misc]
        """The same in float8_e4m3fn."""

        multiplies_in_8_bits = True

    for kind in (DynamicInt8, DynamicFloat8):
        kind.implements_torch_function(torch.nn.functional.linear)(_linear)
        kind.implements(torch.ops.aten.linear.default)(_linear)
    plain = {torch.int8: Int8Tensor, torch.float8_e4m3fn: Float8Tensor}
    return plain, {torch.int8: DynamicInt8, torch.float8_e4m3fn: DynamicFloat8}


def _linear(_func: Any, _types: Any, args: Any, kwargs: Mapping[str, Any] | None) -> Tensor:
    given = dict(zip(("input", "weight", "bias"), args, strict=False)) | dict(kwargs or {})
    weight: Any = given["weight"]
    return eight_bit.linear(given["input"], weight.qdata, weight.scale, given.get("bias"))
