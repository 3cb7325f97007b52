"""Names, shapes and number formats of the published files, for rehearsals; no values.

Parts that are in the layout of diffusers and transformers have the names of those libraries' networks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from accelerate import init_empty_weights
from torch import nn

from engine.planning.parameters import published_sizes
from plugins.families.longcat import sizes
from plugins.families.longcat.lora_keys import ALPHA, DATA, DOWN, HYPHEN, PART, PREFIX, SCALE, UP

#: {tensor: (format, shape)}.
Tensors = dict[str, tuple[str, tuple[int, ...]]]

_BYTES = {"F32": 4, "BF16": 2, "F16": 2, "I8": 1}
#: Most bytes of a file of several.
_SHARD = 5 * 10**9
#: Rank of the published LoRA, in float32.
_RANK = 128
#: Its layers in a block, with the parts of each. Which they are is not known: this is one of the sets that have the
#: size of the published file, 2.5 GB.
_LORA_LAYERS = {
    "attn.qkv": 3,
    "attn.proj": 1,
    "cross_attn.q_linear": 1,
    "cross_attn.kv_linear": 2,
    "ffn.w1": 1,
    "ffn.w2": 1,
    "ffn.w3": 1,
}


def published_files(
    version: str, *, int8: bool, network: str, loras: Sequence[str], blocks: int | None
) -> dict[str, Any]:
    """Return the files of a version; see `engine.config.FamilyConfig.published_files`."""
    config = {**sizes.published_config(version), **({} if blocks is None else {"depth": blocks})}
    transformer, linears = _network(config)
    if version == "1.0":
        folder = network or "avatar_single"
    else:
        folder = "base_model_int8" if int8 else "base_model"
    weights, name = _dense(transformer, "BF16"), "diffusion_pytorch_model"
    if int8:
        weights, name = _in_8_bits(weights, linears), "quantized_model"
    files: dict[str, Any] = {f"{folder}/config.json": config, **dict(_shards(folder, name, weights))}
    for lora in loras:
        files[lora] = _lora(transformer)
    return files | dict(_hearing(version)) | dict(_shared())


def _network(config: Mapping[str, Any]) -> tuple[nn.Module, set[str]]:
    """Return the network on the meta device, and the names of its layers that are published in 8 bits."""
    from plugins.families.longcat.transformer import AvatarTransformer3DModel

    with init_empty_weights():
        network: nn.Module = AvatarTransformer3DModel(**config)
    linears = {
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and name != "final_layer.linear"
    }
    return network, linears


def _shards(folder: str, stem: str, tensors: Tensors) -> Iterator[tuple[str, Any]]:
    """Yield the files of `tensors`, as diffusers and transformers cut them, and their index."""
    shards: list[Tensors] = [{}]
    size = 0
    for name, (dtype, shape) in tensors.items():
        more = math.prod(shape) * _BYTES[dtype]
        if shards[-1] and size + more > _SHARD:
            shards.append({})
            size = 0
        shards[-1][name] = (dtype, shape)
        size += more
    names = [f"{stem}-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    places = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    yield f"{folder}/{stem}.safetensors.index.json", {"metadata": {}, "weight_map": places}
    yield from ((f"{folder}/{name}", shard) for name, shard in zip(names, shards, strict=True))


def _dense(module: nn.Module, dtype: str, prefix: str = "") -> Tensors:
    return {f"{prefix}{name}": (dtype, tuple(value.shape)) for name, value in module.state_dict().items()}


def _in_8_bits(tensors: Tensors, linears: set[str]) -> Tensors:
    packed: Tensors = {}
    for name, (dtype, shape) in tensors.items():
        layer = name.removesuffix(".weight")
        if layer == name or layer not in linears:
            packed[name] = (dtype, shape)
        else:
            packed |= {layer + DATA: ("I8", shape), layer + SCALE: ("F32", shape[:1])}
    return packed


def _lora(network: nn.Module) -> Tensors:
    tensors: Tensors = {}
    for name, module in network.named_modules():
        parts = next((count for layer, count in _LORA_LAYERS.items() if name.endswith(f".{layer}")), 0)
        if not parts or not isinstance(module, nn.Linear):
            continue
        key = PREFIX + name.replace(".", HYPHEN)
        slice_ = module.out_features // parts
        ups = [UP] if parts == 1 else [f"{PART}{index}.weight" for index in range(parts)]
        tensors |= {key + up: ("F32", (slice_, _RANK)) for up in ups}
        tensors |= {key + DOWN: ("F32", (parts * _RANK, module.in_features)), key + ALPHA: ("F32", ())}
    return tensors


def _hearing(version: str) -> Iterator[tuple[str, Any]]:
    from transformers import Wav2Vec2Config, Wav2Vec2Model, WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    kinds: Any = (Wav2Vec2Config, Wav2Vec2Model, WhisperConfig, WhisperEncoder)
    with init_empty_weights():
        if version == "1.0":
            folder, config = "chinese-wav2vec2-base", kinds[0]()
            tensors = _dense(kinds[1](config), "F32")
        else:
            folder = "whisper-large-v3"
            config = kinds[2](**sizes.WHISPER_LARGE_V3)
            tensors = _dense(kinds[3](config), "F16", "model.encoder.")
    yield f"{folder}/config.json", config.to_dict()
    yield f"{folder}/model.safetensors", tensors


def _shared() -> Iterator[tuple[str, Any]]:
    """Yield the files that both versions take from LongCat-Video: umT5-XXL and Wan 2.1's autoencoder, in 32 bits."""
    from diffusers import AutoencoderKLWan
    from transformers import UMT5Config, UMT5EncoderModel

    kinds: Any = (UMT5Config, UMT5EncoderModel)
    # Wan's own text encoder.
    config = kinds[0](**published_sizes("wan-14b").configs["text_encoder"])
    with init_empty_weights():
        text, vae = kinds[1](config), AutoencoderKLWan()
    # The table of words is stored once.
    words = {name: entry for name, entry in _dense(text, "F32").items() if name != "encoder.embed_tokens.weight"}
    yield "text_encoder/config.json", config.to_dict()
    yield from _shards("text_encoder", "model", words)
    yield "vae/config.json", {**vae.config, "_class_name": "AutoencoderKLWan"}
    yield "vae/diffusion_pytorch_model.safetensors", _dense(vae, "F32")
    yield "tokenizer/", None
