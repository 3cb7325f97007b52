"""Write a folder of random weights of any size: the real classes, filled in seconds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from engine.network.precision import kept_in_float32

#: Values in the block of noise that fills every tensor, repeated.
_BLOCK = 2**20


def write_random_folder(
    folder: Path, configs: Mapping[str, Mapping[str, Any]], dtype: torch.dtype, network: Any
) -> None:
    """Write all parts of a model below `folder` in the layout of diffusers and transformers.

    `configs` has what differs from the defaults of each class, by part; `network` is the class of the transformer; the
    tokenizer knows a few words. Weights are normal noise with standard deviation 0.02: transformer, text and image
    encoder in `dtype`, the others in float32.
    """
    block = 0.02 * torch.randn(_BLOCK, generator=torch.Generator().manual_seed(0))
    for name in configs:
        with torch.device("meta"):
            model = build_part(name, configs[name], network)
        model.to_empty(device="cpu")
        for key, parameter in model.named_parameters():
            exact = name in ("vae", "audio_encoder") or (name == "transformer" and kept_in_float32(network, key))
            parameter.data = _filled(parameter.shape, block, torch.float32 if exact else dtype)
        if name == "text_encoder":
            # Leaving the meta device separates tied tensors, and the file would hold them twice.
            model.tie_weights()
        _save(model, folder / name)
        del model
    write_tokenizer(folder / "tokenizer")


def build_part(name: str, config: Mapping[str, Any], network: Any) -> Any:
    """Return the network of the part `name`; `config` has what differs from the defaults of its class.

    `network` is the class of the transformer.
    """
    from diffusers import AutoencoderKLWan
    from transformers import (
        CLIPVisionConfig,
        CLIPVisionModel,
        UMT5Config,
        UMT5EncoderModel,
        Wav2Vec2Config,
        Wav2Vec2Model,
    )

    builders: dict[str, Callable[[], Any]] = {
        "transformer": lambda: network(**config),
        "vae": lambda: AutoencoderKLWan(**config),
        "text_encoder": lambda: UMT5EncoderModel(UMT5Config(**config)),
        "image_encoder": lambda: CLIPVisionModel(CLIPVisionConfig(**config)),
        "audio_encoder": lambda: Wav2Vec2Model(Wav2Vec2Config(**config)),
    }
    return builders[name]()


def _filled(shape: torch.Size, block: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    block = block.to(dtype)
    flat = torch.empty(shape.numel(), dtype=dtype)
    for begin in range(0, len(flat), _BLOCK):
        part = flat[begin : begin + _BLOCK]
        part.copy_(block[: len(part)])
    return flat.view(shape)


def _save(model: nn.Module, folder: Path) -> None:
    saver: Any = model
    saver.save_pretrained(folder)


def write_tokenizer(folder: Path) -> None:
    """Write a tokenizer that knows a few words and ends a prompt with the token of umT5's."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "</s>", "<unk>", "a", "person", "talks"]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer_class: Any = PreTrainedTokenizerFast
    tokenizer_class(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>").save_pretrained(
        folder
    )
