"""Folders of weights in the layouts they are published in: sparse at full size, or filled at a small one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from tiny_folder import WORDS, build_audio_encoder, build_tokenizer
from torch import Tensor

from engine.rehearsal import published
from engine.rehearsal.files import shard_name, shards, write_sparse, write_sparse_archive
from engine.rehearsal.published import Shapes


def write_full_size(root: Path) -> Path:
    """Write the layout of the public implementation, 82 GB of it in a few MB: Wan's folder, audio weights, wav2vec2."""
    wan = root / "Wan2.1-I2V-14B-480P"
    for number, shapes in enumerate(shards(published.wan(), 7), 1):
        write_sparse(wan / shard_name(number, 7), {name: ("F32", shape) for name, shape in shapes.items()})
    config = {"_class_name": "WanModel", "model_type": "i2v", "dim": 5120, "ffn_dim": 13824, "freq_dim": 256}
    config |= {"num_heads": 40, "num_layers": 40, "in_dim": 36, "out_dim": 16, "text_len": 512, "eps": 1e-6}
    (wan / "config.json").write_text(json.dumps(config))
    audio = {name: ("BF16" if ".norm_x." in name else "F32", shape) for name, shape in published.multitalk().items()}
    write_sparse(root / "MeiGen-MultiTalk" / "multitalk.safetensors", audio)
    write_sparse_archive(wan / "models_t5_umt5-xxl-enc-bf16.pth", published.umt5(), "bfloat16")
    tower = published.clip() | {"log_scale": (), "textual.token_embedding.weight": (250002, 1024)}
    write_sparse_archive(wan / "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth", tower, "float16")
    write_sparse_archive(wan / "Wan2.1_VAE.pth", published.vae(), "float32")
    (wan / "google" / "umt5-xxl").mkdir(parents=True)
    (wan / "google" / "umt5-xxl" / "tokenizer_config.json").write_text("{}")
    hearing = root / "chinese-wav2vec2-base"
    write_sparse(hearing / "model.safetensors", {name: ("F32", shape) for name, shape in published.wav2vec2().items()})
    (hearing / "config.json").write_text(json.dumps({"model_type": "wav2vec2"}))
    return root


def random_state(shapes: Shapes, seed: int = 0) -> dict[str, Tensor]:
    """Return tensors of some shapes: matrices that keep the size of what they are given, gains about one."""
    generator = torch.Generator().manual_seed(seed)
    return {name: _random(name, shape, generator) for name, shape in shapes.items()}


def _random(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    values = torch.randn(shape, generator=generator)
    if name.endswith("gamma") or ("norm" in name and name.endswith("weight")):
        return 1 + 0.1 * values
    if len(shape) < 2:
        return 0.1 * values
    scaled: Tensor = values / torch.Size(shape[1:]).numel() ** 0.5
    return scaled


def write_index(folder: Path, files: Mapping[str, Iterable[str]]) -> None:
    """Write the index of shards: names of tensors by file."""
    weight_map = {name: file for file, names in files.items() for name in names}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


#: Wan's own files of components.
FILES = {
    "text_encoder": "models_t5_umt5-xxl-enc-bf16.pth",
    "image_encoder": "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth",
    "vae": "Wan2.1_VAE.pth",
}
#: A transformer in the reference's words, and the other parts, which fit it.
CONFIG = {
    "_class_name": "WanModel",
    "dim": 24,
    "num_heads": 2,
    "ffn_dim": 32,
    "freq_dim": 16,
    "num_layers": 3,
    "in_dim": 36,
    "out_dim": 16,
    "text_dim": 16,
    "text_len": 8,
    "clip_dim": 80,
    "audio_blocks": 2,
    "audio_channels": 16,
    "intermediate_dim": 8,
    "output_dim": 12,
    "context_tokens": 2,
}


def small_transformer() -> dict[str, Tensor]:
    """Return the small transformer's tensors by the reference's names, audio weights among them."""
    wan = published.wan(dim=24, ffn=32, layers=3, text=16, clip=80, freq=16)
    return random_state(wan | published.multitalk(dim=24, layers=3, features=32, hidden=8, out=12, tokens=2))


def write_original(root: Path) -> Path:
    """Write a small model in the layout of the public implementation: Wan's folder, audio weights, wav2vec2."""
    folder = root / "Wan2.1-I2V-14B-480P"
    folder.mkdir(parents=True)
    state = small_transformer()
    audio = {name: state.pop(name) for name in list(state) if "audio" in name or ".norm_x." in name}
    for number, part in enumerate(shards({name: tuple(tensor.shape) for name, tensor in state.items()}, 3), 1):
        save_file({name: state[name] for name in part}, folder / shard_name(number, 3))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (root / "MeiGen-MultiTalk").mkdir()
    save_file(audio, root / "MeiGen-MultiTalk" / "multitalk.safetensors")

    text = published.umt5(vocabulary=len(WORDS) + 3, dim=16, ffn=24, heads=2, layers=2)
    torch.save(random_state(text), folder / FILES["text_encoder"])
    image = published.clip(dim=80, layers=2, tokens=257, out=8) | {"log_scale": ()}
    torch.save(random_state(image), folder / FILES["image_encoder"])
    torch.save(random_state(published.vae(dim=4)), folder / FILES["vae"])
    build_tokenizer().save_pretrained(folder / "google" / "umt5-xxl")
    build_audio_encoder().save_pretrained(root / "chinese-wav2vec2-base")
    return root
