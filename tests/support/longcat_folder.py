"""Published folders of LongCat-Video-Avatar in miniature: random, and small enough to be built in a test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tiny_folder import build_audio_encoder, build_text_encoder, build_tokenizer, build_vae
from torch import nn

#: Of the transformer; the other parts fit.
SIZES: dict[str, Any] = {
    "hidden_size": 24,
    "depth": 2,
    "num_heads": 2,
    "caption_channels": 16,
    "adaln_tembed_dim": 16,
    "frequency_embedding_size": 16,
    "intermediate_dim": 8,
    "output_dim": 12,
    "context_tokens": 2,
    "text_len": 8,
}
#: Layers and channels of the features, by version.
FEATURES = {"1.0": {"audio_block": 2, "audio_channel": 16}, "1.5": {"audio_block": 5, "audio_channel": 16}}


def build_avatar(version: str, seed: int = 0) -> Any:
    """Build the network with small random weights; nothing is zero."""
    from plugins.families.longcat.transformer import AvatarTransformer3DModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AvatarTransformer3DModel(**(SIZES | FEATURES[version])).eval()


def build_whisper() -> Any:
    """Build a whole Whisper with four layers in its encoder."""
    from transformers import WhisperConfig, WhisperModel

    kind: Any = WhisperModel
    config = WhisperConfig(
        vocab_size=16,
        num_mel_bins=16,
        d_model=16,
        encoder_layers=4,
        encoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_layers=1,
        decoder_attention_heads=2,
        decoder_ffn_dim=16,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return kind(config).eval()


def write_int8(folder: Path, model: Any) -> None:
    """Write `model` in the published int8 format."""
    linears = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name != "final_layer.linear"
    }
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        if name not in linears:
            tensors[name] = tensor.bfloat16()
            continue
        scale = tensor.abs().amax(dim=1) / 127
        module = name.removesuffix(".weight")
        tensors[f"{module}.weight_int8"] = (tensor / scale[:, None]).round().to(torch.int8)
        tensors[f"{module}.weight_scale"] = scale
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(dict(model.config)))
    save_file(tensors, folder / "quantized_model.safetensors")


def write_lora(file: Path, model: Any, rank: int = 2) -> None:
    """Write a small random change of the queries, keys and values of all blocks."""
    tensors: dict[str, torch.Tensor] = {}
    random = torch.Generator().manual_seed(6)
    for name, module in model.named_modules():
        if name.endswith(".qkv"):
            key = "lora" + "".join(f"___lorahyphen___{part}" for part in name.split("."))
            tensors[f"{key}.lora_down.weight"] = torch.randn(3 * rank, module.in_features, generator=random)
            for part in range(3):
                up = torch.randn(module.out_features // 3, rank, generator=random)
                tensors[f"{key}.lora_up.blocks.{part}.weight"] = 0.05 * up
            tensors[f"{key}.alpha_scale"] = torch.tensor(0.5)
    file.parent.mkdir(parents=True)
    save_file(tensors, file)


def write_longcat(root: Path, version: str, *, together: bool = False) -> Path:
    """Write the repositories of a version below `root`, each in a folder of its own, or `together` in `root` itself."""
    own, base = (
        root / {"1.0": "LongCat-Video-Avatar", "1.5": "LongCat-Video-Avatar-1.5"}[version],
        root / "LongCat-Video",
    )
    if together:
        own = base = root
    model = build_avatar(version)
    if version == "1.5":
        model.save_pretrained(own / "base_model")
        write_int8(own / "base_model_int8", model)
        write_lora(own / "lora" / "dmd_lora.safetensors", model)
        build_whisper().half().save_pretrained(own / "whisper-large-v3")
    else:
        model.save_pretrained(own / "avatar_single")
        build_avatar(version, seed=1).save_pretrained(own / "avatar_multi")
        build_audio_encoder().save_pretrained(own / "chinese-wav2vec2-base")
    build_text_encoder().save_pretrained(base / "text_encoder")
    build_tokenizer().save_pretrained(base / "tokenizer")
    build_vae().save_pretrained(base / "vae")
    return root
