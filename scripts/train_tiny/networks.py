"""The networks that are trained together: transformer, text and image encoder, and the tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from engine.network.image import clip_pixels
from engine.network.text import clean_prompt
from plugins.families.multitalk.transformer import MultiTalkTransformer3DModel
from scripts.train_tiny import vae
from scripts.train_tiny.places import PLACES
from scripts.train_tiny.scene import ENERGIES, MOODS, TIMES
from scripts.train_tiny.words import WORDS

TEMPORAL = 4
TEXT_DIM, TEXT_LEN, VOCABULARY = 64, 64, 1200
IMAGE_DIM, IMAGE_SIZE, IMAGE_PATCH = 64, 224, 32

TRANSFORMER: dict[str, Any] = {
    "num_attention_heads": 4,
    "attention_head_dim": 40,
    "num_layers": 5,
    "in_channels": 2 * vae.CHANNELS + TEMPORAL,
    "out_channels": vae.CHANNELS,
    "ffn_dim": 640,
    "freq_dim": 128,
    "text_dim": TEXT_DIM,
    "text_len": TEXT_LEN,
    "image_dim": IMAGE_DIM,
    "image_tokens": (IMAGE_SIZE // IMAGE_PATCH) ** 2 + 1,
    "added_kv_proj_dim": 160,
    "audio_layers": 3,
    "audio_channels": 64,
    "audio_intermediate_dim": 256,
    "audio_output_dim": 96,
    "audio_tokens": 4,
}
TEXT: dict[str, Any] = {
    "d_model": TEXT_DIM,
    "d_kv": 16,
    "d_ff": 128,
    "num_layers": 2,
    "num_heads": 4,
    "feed_forward_proj": "gated-gelu",
    "dropout_rate": 0.0,
}
# The engine reads the tokens after the last layer but one.
IMAGE: dict[str, Any] = {
    "hidden_size": IMAGE_DIM,
    "intermediate_size": 128,
    "projection_dim": IMAGE_DIM,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": IMAGE_SIZE,
    "patch_size": IMAGE_PATCH,
}


@dataclass(frozen=True)
class Configs:
    """Sizes of the three networks and of the tokenizer."""

    transformer: dict[str, Any]
    text: dict[str, Any]
    image: dict[str, Any]
    vocabulary: int


CONFIGS = Configs(TRANSFORMER, TEXT, IMAGE, VOCABULARY)

#: Said in place of the prompt; the second is the model preset's negative prompt.
EMPTY = ("", "still picture, blurred")
#: Attributes that a prompt tells, and those that a picture shows (a mood begins only after it).
TOLD: dict[str, tuple[str, ...]] = {
    "mood": tuple(MOODS),
    "energy": tuple(ENERGIES),
    "time": tuple(TIMES),
    "place": tuple(PLACES),
    "people": ("1", "2"),
}
SHOWN = ("time", "place", "people")


class Network(nn.Module):
    """Transformer, text and image encoder, trained together, and linear readings of the two encoders.

    The readings guess the scene's attributes. Their small loss makes words and places linearly readable within
    minutes; left to the video's loss, where the words matter for few latents, that takes most of the training.
    """

    def __init__(self, configs: Configs, *, binding: bool, pad: int = 0, end: int = 1) -> None:
        from transformers import CLIPVisionConfig, CLIPVisionModel, UMT5Config, UMT5EncoderModel

        super().__init__()
        self.transformer: Any = MultiTalkTransformer3DModel(**configs.transformer)
        initialise(self.transformer, binding=binding)
        self.text_encoder: Any = UMT5EncoderModel(
            UMT5Config(vocab_size=configs.vocabulary, pad_token_id=pad, eos_token_id=end, **configs.text)
        )
        self.image_encoder: Any = CLIPVisionModel(CLIPVisionConfig(**configs.image))
        self.told = nn.ModuleDict(
            {name: nn.Linear(int(configs.text["d_model"]), len(values)) for name, values in TOLD.items()}
        )
        self.shown = nn.ModuleDict(
            {name: nn.Linear(int(configs.image["hidden_size"]), len(TOLD[name])) for name in SHOWN}
        )

    def read(self, tokens: Any) -> Tensor:
        """Return the features of a tokenized batch of prompts, (B, tokens, text_dim)."""
        output = self.text_encoder(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
        features: Tensor = output.last_hidden_state
        return features

    def look(self, pixels: Tensor) -> Tensor:
        """Return the features of a picture (3, H, W), -1 .. 1: (1, tokens, image_dim), as the engine takes them."""
        pixels_for_clip = clip_pixels(pixels, int(self.image_encoder.config.image_size))
        features: Tensor = self.image_encoder(pixel_values=pixels_for_clip, output_hidden_states=True).hidden_states[-2]
        return features


def initialise(transformer: Any, *, binding: bool) -> None:
    """Initialise the transformer: Glorot's weights, zero biases, a head that returns 0.

    `binding` makes faces find their voices from the first step on: keys of the self-attention begin as its queries,
    so that a token looks at what is like it and the map of who is where means something; and audio queries and keys
    share a bias in the channels whose label phase tells the two speakers' ranges apart, so that a token's own voice
    has the larger logit. A choice, not an ablated finding.
    """
    with torch.no_grad():
        for module in transformer.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    module.bias.zero_()
        for module in transformer.condition_embedder.time_embedder.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
        transformer.proj_out.weight.zero_()
        if not binding:
            return
        heads, dim = transformer.config.num_attention_heads, transformer.config.attention_head_dim
        frequencies = 10000.0 ** -(torch.arange(0, dim, 2) / dim)
        # 20 labels lie between the ranges: about half a turn.
        apart = ((frequencies > 0.09) & (frequencies < 0.2)).float() * 2.5
        for block in transformer.blocks:
            block.attn1.to_k.weight.copy_(block.attn1.to_q.weight)
            shared = torch.randn(heads * dim) * 0.5
            block.attn1.to_q.bias.copy_(shared)
            block.attn1.to_k.bias.copy_(shared)
            bias = apart.repeat_interleave(2).repeat(heads)
            block.audio_attn.to_q.bias.copy_(bias)
            block.audio_attn.to_kv.bias[: heads * dim].copy_(bias)


def hold_labels(transformer: Any) -> None:
    """Block gradients through the label positions, whose assignment is a decision; this saves half of the time."""

    def detach(_module: nn.Module, _inputs: Any, output: Tensor | tuple[Tensor, Tensor]) -> Any:
        # One speaker needs no scores.
        return output if isinstance(output, Tensor) else (output[0], output[1].detach())

    for block in transformer.blocks:
        block.attn1.register_forward_hook(detach)


def make_tokenizer(prompts: Iterable[str], vocabulary: int) -> Any:
    """Return a byte-level BPE tokenizer trained on prompts and plain words: any text can be decoded from its tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    phrases = [f"It is, {word}." for group in (MOODS, ENERGIES) for _, words in group.values() for word in words]
    phrases += [f"It is {word}." for words in (*TIMES.values(), tuple(PLACES), EMPTY) for word in words]
    plain = [" ".join(words) for words in WORDS.values()]
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(
        [*prompts, *phrases * 10, *plain],
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
        model_max_length=TEXT_LEN,
        clean_up_tokenization_spaces=False,
    )


def tokenize(tokenizer: Any, prompts: Sequence[str]) -> Any:
    """Tokenize a batch as the engine tokenizes one prompt."""
    return tokenizer(
        [clean_prompt(prompt) for prompt in prompts],
        max_length=TEXT_LEN,
        truncation=True,
        padding=len(prompts) > 1,
        return_attention_mask=True,
        return_tensors="pt",
    )
