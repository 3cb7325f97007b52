"""A complete folder of weights in miniature, random and small enough to be built in a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

WORDS = ["a", "bright", "face", "person", "speaks", "still", "the", "two"]
#: Of the transformer; the other parts are made to fit.
SIZES: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "text_dim": 16,
    "freq_dim": 16,
    "ffn_dim": 32,
    "num_layers": 3,
    "image_dim": 24,
    "text_len": 8,
    "image_tokens": 5,
    "audio_layers": 2,
    "audio_channels": 16,
    "audio_intermediate_dim": 8,
    "audio_output_dim": 12,
    "audio_tokens": 2,
}


def build_transformer(seed: int = 0, **sizes: Any) -> Any:
    """Build the network with small random weights; nothing is zero."""
    from plugins.families.multitalk.transformer import MultiTalkTransformer3DModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MultiTalkTransformer3DModel(**(SIZES | sizes)).eval()


def build_vae() -> Any:
    """Build Wan's autoencoder with 14 thousand parameters."""
    from diffusers import AutoencoderKLWan

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return AutoencoderKLWan(
            base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
        ).eval()


def build_text_encoder() -> Any:
    from transformers import UMT5Config, UMT5EncoderModel

    config = UMT5Config(
        vocab_size=len(WORDS) + 3,
        d_model=16,
        d_kv=8,
        d_ff=24,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return _shaken(UMT5EncoderModel(config))


def build_tokenizer() -> Any:
    """Build a tokenizer of whole words that ends every prompt, as umT5's does."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: index for index, token in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return cast("Any", PreTrainedTokenizerFast)(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )


def build_image_encoder() -> Any:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
        hidden_act="gelu",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return _shaken(CLIPVisionModel(config))


def build_audio_encoder(**changes: Any) -> Any:
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    config = Wav2Vec2Config(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        conv_dim=(8,) * 7,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
        **changes,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        return _shaken(Wav2Vec2Model(config))


def write_folder(folder: Path) -> Path:
    """Write all components below `folder`, in the layout of diffusers and transformers."""
    build_transformer().save_pretrained(folder / "transformer")
    build_vae().save_pretrained(folder / "vae")
    build_text_encoder().save_pretrained(folder / "text_encoder")
    build_tokenizer().save_pretrained(folder / "tokenizer")
    build_image_encoder().save_pretrained(folder / "image_encoder")
    build_audio_encoder().save_pretrained(folder / "audio_encoder")
    return folder


def _shaken(model: nn.Module) -> nn.Module:
    # Fresh biases are nought and fresh norms are one, which hides mistakes.
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()
