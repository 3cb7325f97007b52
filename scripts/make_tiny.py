"""Write the tiny model: the 14B model's classes in small, with seeded numbers nobody has trained.

    python scripts/make_tiny.py [FOLDER]

FOLDER is engine/weights/tiny by default. Every tensor depends on its component and name alone and is made of integers
and roots, so that the files come out identical on every machine and with every version of the libraries.
"""

from __future__ import annotations

import argparse
import json
import math
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from diffusers import __version__ as diffusers_version
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    PreTrainedTokenizerFast,
    UMT5Config,
    UMT5EncoderModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
)
from transformers import __version__ as transformers_version

from engine.multitalk.transformer import MultiTalkTransformer3DModel

FOLDER = Path(__file__).parent.parent / "engine" / "weights" / "tiny"

TEXT_DIM, TEXT_LEN, VOCABULARY = 32, 64, 600
IMAGE_DIM, IMAGE_SIZE, IMAGE_PATCH = 32, 224, 32
AUDIO_DIM, AUDIO_LAYERS = 32, 3
LORA_RANK = 4

TRANSFORMER: dict[str, Any] = {
    "num_attention_heads": 4,
    "attention_head_dim": 16,
    "num_layers": 2,
    "ffn_dim": 192,
    "freq_dim": 64,
    "text_dim": TEXT_DIM,
    "text_len": TEXT_LEN,
    "image_dim": IMAGE_DIM,
    "image_tokens": (IMAGE_SIZE // IMAGE_PATCH) ** 2 + 1,
    "added_kv_proj_dim": 64,
    "audio_layers": AUDIO_LAYERS,
    "audio_channels": AUDIO_DIM,
    "audio_intermediate_dim": 48,
    "audio_output_dim": 48,
    "audio_tokens": 4,
}

# Patches of 2 before the first layer: an eighth of the size with two halvings, and no layer at full size.
VAE: dict[str, Any] = {
    "base_dim": 6,
    "z_dim": 16,
    "dim_mult": [1, 2, 4],
    "num_res_blocks": 1,
    "attn_scales": [],
    "temperal_downsample": [True, True],
    "patch_size": 2,
    "in_channels": 12,
    "out_channels": 12,
    "scale_factor_spatial": 8,
    "scale_factor_temporal": 4,
    "latents_mean": [0.0] * 16,
    "latents_std": [1.0] * 16,
}

SENTENCES = (
    "Two people talk to each other in the park.",
    "A woman and a man are talking and looking at each other, the camera stands still.",
    "A person speaks to the camera in a bright room, natural light, medium shot.",
    "A cartoon of two friends who tell each other a story; their lips move with the words.",
    "The man on the left is speaking while the woman on the right listens and smiles.",
    "still picture, blurred, low quality, bright tones, overexposed, subtitles, worst quality",
    "Zwei Menschen sprechen im Grünen miteinander; schöne Häuser, große Straße, warmes Licht.",
    "Une femme et un homme se parlent près de la forêt, lumière naturelle, caméra fixe.",
    "两个人在公园里互相交谈，镜头不动，自然光。一个女人对着镜头说话。",
    "二人が公園で話しています。カメラは動きません。",
)


def make(folder: Path = FOLDER) -> None:
    """Write all components below `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer(SENTENCES, VOCABULARY, TEXT_LEN)
    tokenizer.save_pretrained(folder / "tokenizer")
    transformer = MultiTalkTransformer3DModel(**TRANSFORMER)
    parts: dict[str, nn.Module] = {
        "transformer": transformer,
        "vae": AutoencoderKLWan(**VAE),
        "text_encoder": UMT5EncoderModel(
            UMT5Config(
                vocab_size=VOCABULARY,
                d_model=TEXT_DIM,
                d_kv=8,
                d_ff=64,
                num_layers=2,
                num_heads=4,
                feed_forward_proj="gated-gelu",
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
        ),
        "image_encoder": CLIPVisionModel(
            CLIPVisionConfig(
                hidden_size=IMAGE_DIM,
                intermediate_size=64,
                projection_dim=IMAGE_DIM,
                num_hidden_layers=2,
                num_attention_heads=4,
                image_size=IMAGE_SIZE,
                patch_size=IMAGE_PATCH,
            )
        ),
        "audio_encoder": Wav2Vec2Model(
            Wav2Vec2Config(
                hidden_size=AUDIO_DIM,
                intermediate_size=64,
                num_hidden_layers=AUDIO_LAYERS,
                num_attention_heads=4,
                conv_dim=(16, 16, 16, 24, 24, 32, 32),
                conv_bias=True,
                feat_extract_norm="layer",
                num_conv_pos_embeddings=16,
                num_conv_pos_embedding_groups=4,
                hidden_dropout=0.0,
                attention_dropout=0.0,
                activation_dropout=0.0,
                feat_proj_dropout=0.0,
                layerdrop=0.0,
                apply_spec_augment=False,
            )
        ),
    }
    for name, part in parts.items():
        fill(name, part)
        part.half().save_pretrained(folder / name)  # type: ignore[operator]
    reader = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=False)  # type: ignore[no-untyped-call]
    reader.save_pretrained(folder / "audio_encoder")
    (folder / "loras").mkdir(exist_ok=True)
    save_file(make_lora(transformer), folder / "loras" / "turbo.safetensors", {"format": "pt"})
    write_json(folder / "model_index.json", model_index(parts))
    for path in folder.rglob("*.*"):
        # safetensors keeps its files to their owner; these are part of a package.
        path.chmod(0o644)
        if path.suffix == ".json":
            # The libraries differ in whether a file ends with a line break.
            path.write_text(path.read_text("utf-8").rstrip() + "\n", "utf-8")


def fill(component: str, module: nn.Module) -> None:
    """Give every parameter and float buffer of `module` its numbers, in place."""
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(numbers(component, name, tensor))


def numbers(component: str, name: str, like: Tensor) -> Tensor:
    """Return the numbers of one tensor: ones for norms, small ones for biases, else kept in scale by fan-in."""
    parts = name.split(".")
    norm = any("norm" in part for part in parts) and like.squeeze().ndim <= 1
    if norm and parts[-1] in ("weight", "gamma"):
        return torch.ones_like(like)
    if parts[-1] == "original0":  # length of a weight-normalised kernel
        return torch.full_like(like, 2.0)
    if parts[-1] == "bias":
        spread = 0.02
    elif component == "vae" and parts[1] == "conv_out":
        spread = VAE_OUT[parts[0]] / math.sqrt(math.prod(like.shape[1:]))
    elif like.ndim <= 1 or parts[-1] == "scale_shift_table" or any(part in EMBEDDINGS for part in parts):
        spread = 1 / math.sqrt(like.shape[-1])
    else:
        spread = 1 / math.sqrt(math.prod(like.shape[1:]) or 1)
    return uniform(f"{component}.{name}", tuple(like.shape), spread).to(like.dtype)


# Looked up, not multiplied with: kept in scale by their width.
EMBEDDINGS = ("shared", "embed_tokens", "relative_attention_bias", "position_embedding", "class_embedding")

# Gains of the autoencoder's last layers: latents of about unit size, pictures within -1 .. 1.
VAE_OUT = {"encoder": 2.0, "decoder": 0.5}


def uniform(name: str, shape: tuple[int, ...], spread: float) -> Tensor:
    """Return uniform numbers of standard deviation `spread`, seeded by the name."""
    # RandomState's stream is frozen by numpy's policy; uniform numbers need no transcendental function.
    stream = np.random.RandomState(zlib.crc32(name.encode()))
    return torch.from_numpy((2 * stream.random_sample(shape) - 1) * spread * math.sqrt(3))


def make_lora(transformer: nn.Module) -> dict[str, Tensor]:
    """Return a LoRA over every self-attention, text attention and feed-forward layer, under the engine's names."""
    wanted = (".attn1.to_", ".attn2.to_", ".ffn.net.")
    lora = {}
    for name, layer in transformer.named_modules():
        if isinstance(layer, nn.Linear) and any(part in name for part in wanted):
            for half, shape in (("A", (LORA_RANK, layer.in_features)), ("B", (layer.out_features, LORA_RANK))):
                key = f"transformer.{name}.lora_{half}.weight"
                lora[key] = uniform(key, shape, 0.5 / math.sqrt(shape[1])).half()
    return lora


def make_tokenizer(texts: Iterable[str], vocabulary: int, length: int) -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer trained on `texts`: any text comes back from its tokens, none is unknown."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=["<pad>", "</s>"],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    end = core.token_to_id("</s>")
    core.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", end)])
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="</s>",
        model_max_length=length,
        clean_up_tokenization_spaces=False,
    )


def model_index(parts: dict[str, nn.Module]) -> dict[str, Any]:
    """Return the index of the folder, as diffusers writes it, and that nobody has trained these weights."""
    libraries = {"vae": "diffusers", "transformer": "engine.multitalk.transformer"}
    return {
        "_class_name": "MultiTalk",
        "_diffusers_version": diffusers_version,
        "_transformers_version": transformers_version,
        "license": "MIT",
        "untrained": True,
        **{name: [libraries.get(name, "transformers"), type(part).__name__] for name, part in sorted(parts.items())},
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON as the libraries do."""
    path.write_text(json.dumps(content, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER)
    make(parser.parse_args().folder)
