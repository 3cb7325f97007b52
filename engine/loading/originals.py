"""Tensors of Wan's own umT5, CLIP and autoencoder files -> those of transformers' and diffusers' classes, one by one.

Each component has a converter `(key, tensor) -> ((name, tensor), ...)`, which works on meta tensors too, and a
function from the shapes in a file to the arguments of the class, because these files have no config.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from engine.errors import SourceError
from engine.network.compat import convert_wan_vae_to_diffusers

Converted = Iterable[tuple[str, Tensor]]
Converter = Callable[[str, Tensor], Converted]
Shapes = Mapping[str, tuple[int, ...]]

_BLOCK = re.compile(r"^blocks\.(\d+)\.(.+)$")
_UMT5 = {
    "norm1.weight": "layer.0.layer_norm.weight",
    "attn.q.weight": "layer.0.SelfAttention.q.weight",
    "attn.k.weight": "layer.0.SelfAttention.k.weight",
    "attn.v.weight": "layer.0.SelfAttention.v.weight",
    "attn.o.weight": "layer.0.SelfAttention.o.weight",
    "pos_embedding.embedding.weight": "layer.0.SelfAttention.relative_attention_bias.weight",
    "norm2.weight": "layer.1.layer_norm.weight",
    "ffn.gate.0.weight": "layer.1.DenseReluDense.wi_0.weight",
    "ffn.fc1.weight": "layer.1.DenseReluDense.wi_1.weight",
    "ffn.fc2.weight": "layer.1.DenseReluDense.wo.weight",
}
#: As transformers calls them, and so ComfyUI.
_UMT5_OWN = re.compile(r"^encoder\.block\.\d+\.layer\.[01]\.")
_UMT5_ROOT = {"token_embedding.weight": "shared.weight", "norm.weight": "encoder.final_layer_norm.weight"}

_LAYER = re.compile(r"^visual\.transformer\.(\d+)\.(.+)\.(weight|bias)$")
_CLIP = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.proj": "self_attn.out_proj",
    "mlp.0": "mlp.fc1",
    "mlp.2": "mlp.fc2",
}
_CLIP_ROOT = {
    "visual.patch_embedding.weight": "embeddings.patch_embedding.weight",
    "visual.pre_norm.weight": "pre_layrnorm.weight",
    "visual.pre_norm.bias": "pre_layrnorm.bias",
    "visual.post_norm.weight": "post_layernorm.weight",
    "visual.post_norm.bias": "post_layernorm.bias",
}
#: The text tower, the temperature and the projection into the space shared with it.
_CLIP_UNUSED = re.compile(r"^(textual\.|log_scale$|visual\.head$|text_model\.|\w+_projection\.|logit_scale$)")
#: As transformers calls them, and so ComfyUI.
_CLIP_OWN = re.compile(r"^(embeddings|encoder\.layers|pre_layrnorm|post_layernorm)\.")


def convert_umt5(key: str, tensor: Tensor) -> Converted:
    """Rename a tensor of `models_t5_umt5-xxl-enc-bf16.pth` as in UMT5EncoderModel. Raises SourceError."""
    block = _BLOCK.match(key)
    if block and block[2] in _UMT5:
        return ((f"encoder.block.{block[1]}.{_UMT5[block[2]]}", tensor),)
    if key in _UMT5_ROOT:
        return ((_UMT5_ROOT[key], tensor),)
    if key in _UMT5_ROOT.values() or _UMT5_OWN.match(key):
        return ((key, tensor),)
    raise SourceError(f"no tensor of umT5's encoder is named {key!r}", field="key")


def convert_clip(key: str, tensor: Tensor) -> Converted:
    """Rename a tensor of `models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth` as in CLIPVisionModel.

    The joint projection of queries, keys and values becomes three; the text tower is dropped. Raises SourceError.
    """
    if _CLIP_UNUSED.match(key):
        return ()
    if _CLIP_OWN.match(name := key.removeprefix("vision_model.")):
        return () if name.endswith("position_ids") else ((name, tensor),)
    if key in _CLIP_ROOT:
        return ((_CLIP_ROOT[key], tensor),)
    if key == "visual.cls_embedding":
        return (("embeddings.class_embedding", tensor.flatten()),)
    if key == "visual.pos_embedding":
        return (("embeddings.position_embedding.weight", tensor.flatten(0, 1)),)
    layer = _LAYER.match(key)
    if layer and layer[2] in _CLIP:
        return ((f"encoder.layers.{layer[1]}.{_CLIP[layer[2]]}.{layer[3]}", tensor),)
    if layer and layer[2] == "attn.to_qkv":
        parts = zip("qkv", tensor.chunk(3), strict=True)
        return tuple((f"encoder.layers.{layer[1]}.self_attn.{name}_proj.{layer[3]}", part) for name, part in parts)
    raise SourceError(f"no tensor of CLIP's vision tower is named {key!r}", field="key")


def convert_vae(key: str, tensor: Tensor) -> Converted:
    """Rename a tensor of `Wan2.1_VAE.pth` as in AutoencoderKLWan. An unknown name is kept."""
    return tuple(convert_wan_vae_to_diffusers({key: tensor}).items())


def umt5_config(shapes: Shapes) -> dict[str, Any]:
    """Return UMT5Config's arguments for the shapes of an original file. Raises SourceError if one is missing."""
    renamed = _shapes_of(shapes, convert_umt5)
    if "shared.weight" not in renamed:
        raise SourceError("it holds no 'token_embedding.weight' (or 'shared.weight')", field="source")
    vocabulary, width = renamed["shared.weight"]
    buckets, heads = _shape(renamed, "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight")
    return {
        "vocab_size": vocabulary,
        "d_model": width,
        "d_kv": _shape(renamed, "encoder.block.0.layer.0.SelfAttention.q.weight")[0] // heads,
        "d_ff": _shape(renamed, "encoder.block.0.layer.1.DenseReluDense.wi_1.weight")[0],
        "num_layers": _count(renamed, r"encoder\.block\.(\d+)\."),
        "num_heads": heads,
        "relative_attention_num_buckets": buckets,
        "feed_forward_proj": "gated-gelu",
    }


def clip_config(shapes: Shapes) -> dict[str, Any]:
    """Return CLIPVisionConfig's arguments for the shapes of an original file. Raises SourceError if one is missing.

    The number of heads is not in any shape: it is computed from ViT-H's head width, 80.
    """
    renamed = _shapes_of(shapes, convert_clip)
    width, _, patch, _ = _shape(renamed, "embeddings.patch_embedding.weight")
    return {
        "hidden_size": width,
        "intermediate_size": _shape(renamed, "encoder.layers.0.mlp.fc1.weight")[0],
        "num_hidden_layers": _count(renamed, r"encoder\.layers\.(\d+)\."),
        "num_attention_heads": width // 80,
        "image_size": math.isqrt(_shape(renamed, "embeddings.position_embedding.weight")[0] - 1) * patch,
        "patch_size": patch,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
    }


def vae_config(shapes: Shapes) -> dict[str, Any]:
    """Return AutoencoderKLWan's arguments for the shapes of an original file. Raises SourceError if one is missing.

    Everything else, including the latents' statistics, are the defaults of the class, which are those of Wan 2.1.
    """
    first, last = (
        ("encoder.conv_in.weight", "post_quant_conv.weight")
        if "post_quant_conv.weight" in shapes
        else ("encoder.conv1.weight", "conv2.weight")
    )
    return {"base_dim": _shape(shapes, first)[0], "z_dim": _shape(shapes, last)[0]}


def _shapes_of(shapes: Shapes, convert: Converter) -> Shapes:
    """Return shapes under the names that `convert` gives."""
    empty = ((key, torch.empty(shape, device="meta")) for key, shape in shapes.items())
    return {name: tuple(tensor.shape) for key, one in empty for name, tensor in convert(key, one)}


def _shape(shapes: Shapes, key: str) -> tuple[int, ...]:
    if key not in shapes:
        raise SourceError(f"it holds no {key!r}", field="source")
    return shapes[key]


def _count(shapes: Shapes, pattern: str) -> int:
    return 1 + max(int(match[1]) for match in map(re.compile(pattern).match, shapes) if match)
