"""Write weight folders like the published ones, with real headers and sparse data: 30 to 90 GB in some megabytes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from engine.errors import ConfigError, MissingExtra
from engine.loading.layout import QUANTISED
from engine.rehearsal import published
from engine.rehearsal.published import Shapes

Entry = tuple[str, tuple[int, ...]]

_BYTES = {"F32": 4, "BF16": 2, "F16": 2, "I8": 1, "F8_E4M3": 1}
#: Names in a quantisation map for dtypes in the file.
_KINDS = {"I8": "qint8", "F8_E4M3": "qfloat8"}
_SHARDS = 7
#: The published FusionX LoRA: rank 32 for each linear layer of a block, in 16 bits.
_RANK = 32
_LORA_MODULES = (
    *(f"self_attn.{name}" for name in "qkvo"),
    *(f"cross_attn.{name}" for name in ("q", "k", "v", "o", "k_img", "v_img")),
    "ffn.0",
    "ffn.2",
)


def write_published(
    root: Path, architecture: Mapping[str, Mapping[str, Any]], *, quant: str, adapter: str, loras: Iterable[str] = ()
) -> None:
    """Write below `root` the files of a published model, with the sizes in `architecture`.

    `architecture` has configs by part, as in engine/planning/architectures. `quant` decides the transformer's files:
    "int8-quanto", "fp8-quanto" and "gguf" have their own file, others use Wan's shards in float32. `adapter` is the
    file of audio weights; without, they are in the shards, in bfloat16, as FlashTalk's. `loras` are LoRAs of the
    network. Raises MissingExtra for a GGUF file without the gguf package.
    """
    config = architecture["transformer"]
    dim, layers = config["num_attention_heads"] * config["attention_head_dim"], config["num_layers"]
    wan = published.wan(dim, config["ffn_dim"], layers, config["text_dim"], config["image_dim"], config["freq_dim"])
    audio = published.multitalk(dim, layers)
    base = root / "base"
    base.mkdir(parents=True)
    _write_config(base / "config.json", config, dim)
    if quant == "gguf":
        _write_gguf(root / "wan-Q8_0.gguf", wan)
    elif quant in QUANTISED:
        _, kind = QUANTISED[quant]
        packed = root / "quant_models"
        _write_quanto(packed / f"dit_model_{quant}.safetensors", packed / f"dit_map_{quant}.json", wan | audio, kind)
        text = _text(architecture["text_encoder"])
        # These are in 16 bits, the network's in 32.
        _write_quanto(packed / f"t5_{quant}.safetensors", packed / f"t5_map_{quant}.json", text, kind, rest="BF16")
    else:
        parts = [shapes for shapes in shards(wan if adapter else wan | audio, _SHARDS) if shapes]
        dtype = "F32" if adapter else "BF16"
        for number, shapes in enumerate(parts, 1):
            write_sparse(
                base / shard_name(number, len(parts)), {name: (dtype, shape) for name, shape in shapes.items()}
            )
    if quant not in QUANTISED or quant == "gguf":
        if adapter or quant == "gguf":
            entries = {name: ("BF16" if ".norm_x." in name else "F32", shape) for name, shape in audio.items()}
            write_sparse(root / (adapter or "audio.safetensors"), entries)
        write_sparse_archive(root / "models_t5_umt5-xxl-enc-bf16.pth", _text(architecture["text_encoder"]), "bfloat16")
    _write_encoders(root, architecture)
    for name in loras:
        write_sparse(root / name, _lora(wan, layers))


def write_described(root: Path, described: Mapping[str, Any]) -> None:
    """Write below `root` the files that a family describes (`engine.config.FamilyConfig.published_files`)."""
    from engine.loading.random_weights import write_tokenizer

    for name, what in described.items():
        path = root / name
        if what is None:
            write_tokenizer(path)
        elif path.suffix == ".safetensors":
            write_sparse(path, what)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(what), "utf-8")


def write_sparse(path: Path, tensors: Mapping[str, Entry]) -> Path:
    """Write a safetensors file with a real header and no data: (dtype, shape) by name; reading it gives zeros."""
    header: dict[str, Any] = {}
    end = 0
    # In the library's order: wide dtypes first, then by name.
    for name, (dtype, shape) in sorted(tensors.items(), key=lambda item: (-_BYTES[item[1][0]], item[0])):
        begin, end = end, end + math.prod(shape) * _BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return path


def write_sparse_archive(path: Path, shapes: Shapes, dtype: str) -> Path:
    """Write a file like torch.save, with sparse data for each tensor."""
    import torch

    with torch.serialization.skip_data():
        torch.save({name: torch.empty(shape, dtype=getattr(torch, dtype)) for name, shape in shapes.items()}, path)
    return path


def shards(shapes: Shapes, count: int) -> list[Shapes]:
    """Split a list of tensors into `count` parts of about equal size, in order."""
    whole = sum(math.prod(shape) for shape in shapes.values())
    parts: list[Shapes] = [{} for _ in range(count)]
    counted = 0
    for name, shape in shapes.items():
        parts[min(counted * count // whole, count - 1)][name] = shape
        counted += math.prod(shape)
    return parts


def shard_name(number: int, count: int) -> str:
    """Return the name of shard `number` (from 1) of `count`."""
    return f"diffusion_pytorch_model-{number:05}-of-{count:05}.safetensors"


def _write_config(path: Path, config: Mapping[str, Any], dim: int) -> None:
    entries = {
        "_class_name": "WanModel",
        "model_type": "i2v",
        "dim": dim,
        "ffn_dim": config["ffn_dim"],
        "freq_dim": config["freq_dim"],
        "num_heads": config["num_attention_heads"],
        "num_layers": config["num_layers"],
        "in_dim": config["in_channels"],
        "out_dim": config["out_channels"],
        "text_len": config["text_len"],
        "eps": 1e-6,
    }
    path.write_text(json.dumps(entries), "utf-8")


def _text(config: Mapping[str, Any]) -> Shapes:
    return published.umt5(
        config["vocab_size"],
        config["d_model"],
        config["d_ff"],
        config["num_heads"],
        config["num_layers"],
        config["d_kv"],
    )


def _write_encoders(root: Path, architecture: Mapping[str, Mapping[str, Any]]) -> None:
    from engine.loading.random_weights import write_tokenizer

    image, hearing = architecture["image_encoder"], architecture["audio_encoder"]
    tokens = (image["image_size"] // image["patch_size"]) ** 2 + 1
    tower = published.clip(image["hidden_size"], image["num_hidden_layers"], image["patch_size"], tokens)
    name = "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"
    write_sparse_archive(root / name, tower | {"log_scale": ()}, "float16")
    vae = architecture["vae"]
    if list(vae["dim_mult"]) != [1, 2, 4, 4] or vae["num_res_blocks"] != 2:
        raise ConfigError("the autoencoder is not Wan 2.1's", field="model.architecture")
    write_sparse_archive(root / "Wan2.1_VAE.pth", published.vae(vae["base_dim"], vae["z_dim"]), "float32")
    write_tokenizer(root / "google" / "umt5-xxl")
    folder = root / "audio_encoder"
    voices = published.wav2vec2(hearing["hidden_size"], hearing["intermediate_size"], hearing["num_hidden_layers"])
    write_sparse(folder / "model.safetensors", {key: ("F32", shape) for key, shape in voices.items()})
    (folder / "config.json").write_text(json.dumps({"model_type": "wav2vec2", **hearing}), "utf-8")


def _write_quanto(path: Path, map_path: Path, shapes: Shapes, kind: str, *, rest: str = "F32") -> None:
    """Pack each linear layer as optimum-quanto does: weights as `kind`, one scale per row and all others as `rest`."""
    entries: dict[str, Entry] = {}
    quantisation_map: dict[str, dict[str, str]] = {}
    for name, shape in shapes.items():
        module = name.removesuffix(".weight")
        # Embedding tables are not packed.
        if module == name or len(shape) != 2 or module.endswith(("token_embedding", "pos_embedding.embedding")):
            entries[name] = (rest, shape)
            continue
        entries |= {f"{name}._data": (kind, shape), f"{name}._scale": (rest, (shape[0], 1))}
        entries |= {f"{module}.input_scale": ("F32", ()), f"{module}.output_scale": ("F32", ())}
        quantisation_map[module] = {"weights": _KINDS[kind], "activations": "none"}
    write_sparse(path, entries)
    map_path.write_text(json.dumps(quantisation_map), "utf-8")


def _write_gguf(path: Path, shapes: Shapes) -> None:
    try:
        import gguf
    except ImportError as error:
        raise MissingExtra("quant=gguf", "gguf", "gguf") from error
    import numpy as np

    packed = gguf.GGMLQuantizationType.Q8_0
    block, size = gguf.GGML_QUANT_SIZES[packed]
    writer = gguf.GGUFWriter(path, "wan")
    end = 0
    for name, full_shape in shapes.items():
        shape = full_shape
        if len(shape) > 4:
            # The format has four dimensions; more are stored in a field.
            writer.add_array(f"comfy.gguf.orig_shape.{name}", list(shape))
            shape = (shape[0], math.prod(shape[1:]))
        if len(full_shape) == 2 and shape[1] % block == 0:
            length = math.prod(shape) // block * size
            rows = (shape[0], shape[1] // block * size)
            writer.add_tensor_info(name, rows, np.dtype(np.uint8), length, raw_dtype=packed)
        else:
            length = math.prod(shape) * 4
            writer.add_tensor_info(name, shape, np.dtype(np.float32), length)
        end += -(-length // writer.data_alignment) * writer.data_alignment
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    length = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(-(-length // writer.data_alignment) * writer.data_alignment + end)


def _lora(wan: Shapes, layers: int) -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    for index in range(layers):
        for module in _LORA_MODULES:
            rows, columns = wan[f"blocks.{index}.{module}.weight"]
            key = f"diffusion_model.blocks.{index}.{module}"
            entries[f"{key}.lora_down.weight"] = ("BF16", (_RANK, columns))
            entries[f"{key}.lora_up.weight"] = ("BF16", (rows, _RANK))
    return entries
