"""How many operations each part needs; a multiplication and an addition count as two."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from engine.planning.activations import tokens
from engine.planning.parameters import vae_layers, width

Config = Mapping[str, Any]


class Forward(NamedTuple):
    """One forward of the transformer."""

    #: Operations of matrix products, and of fused attention.
    products: int
    attention: int
    #: Bytes that norms, rotations, activations, sums and quantising read and write.
    moved: int
    #: Operations of products in 8 bits, which are part of `products`, and their format: "int8" or "fp8".
    in_8_bits: int = 0
    format: str = ""

    @property
    def operations(self) -> int:
        return self.products + self.attention


#: Reads and writes of a block's element-wise work, in float32 values a token and channel, counted in
#: engine.multitalk.transformer and .attention: six norms with their casts, two rotations, four sums.
_PASSES = 58
#: The same for the rotation by speaker.
_LABELLED = 10
#: The same for compiled blocks, with speakers: a prediction, counted as if each norm, rotation and sum were one kernel
#: with its casts. No card has measured it.
_FUSED = 20


@dataclass(frozen=True)
class Multiplied:
    """Linear layers of the blocks that multiply in 8 bits."""

    #: "int8" or "fp8".
    format: str
    #: Layers that do not, as parts of their names.
    keep: tuple[str, ...] = ()


class Linear(NamedTuple):
    """A linear layer of a block, in one forward."""

    name: str
    rows: int
    inputs: int
    outputs: int

    @property
    def operations(self) -> int:
        return 2 * self.rows * self.inputs * self.outputs


def block_linears(config: Config, latents: tuple[int, int, int], *, speakers: int) -> tuple[Linear, ...]:
    """Return the linear layers of a block for latents (T, h, w), by their names in engine.multitalk.transformer."""
    dim, ffn, length = width(config), int(config["ffn_dim"]), tokens(config, latents)
    heard = latents[0] // config["patch_size"][0] * speakers * config["audio_tokens"]
    square: dict[str, int] = {
        **dict.fromkeys(("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0"), length),
        **dict.fromkeys(("attn2.to_q", "attn2.to_out.0", "audio_attn.to_q", "audio_attn.to_out"), length),
        **dict.fromkeys(("attn2.to_k", "attn2.to_v"), config["text_len"]),
        **dict.fromkeys(("attn2.add_k_proj", "attn2.add_v_proj"), config["image_tokens"]),
    }
    return (
        *(Linear(name, rows, dim, dim) for name, rows in square.items()),
        Linear("audio_attn.to_kv", heard, config["audio_output_dim"], 2 * dim),
        Linear("ffn.net.0.proj", length, dim, ffn),
        Linear("ffn.net.2", length, ffn, dim),
    )


def forward_work(
    config: Config,
    latents: tuple[int, int, int],
    *,
    value: int,
    speakers: int = 1,
    multiplied: Multiplied | None = None,
    compiled: bool = False,
) -> Forward:
    """Return the work of one forward on latents (T, h, w).

    `multiplied`: what runs in 8 bits; `compiled`: by torch.compile, block by block.
    """
    dim, ffn, length = width(config), config["ffn_dim"], tokens(config, latents)
    frames, layers = latents[0] // config["patch_size"][0], config["num_layers"]
    context = config["text_len"] + config["image_tokens"]
    audio_tokens = speakers * config["audio_tokens"]
    linears = block_linears(config, latents, speakers=speakers)
    products = layers * sum(layer.operations for layer in linears)
    keys = length + context + audio_tokens + (length // frames if speakers > 1 else 0)
    ends = length * math.prod(config["patch_size"]) * (config["in_channels"] + config["out_channels"]) * dim
    passes = _FUSED if compiled else _PASSES + (_LABELLED if speakers > 1 else 0)
    moved = layers * (passes * 4 * length * dim + 2 * length * ffn * value)
    small, quantising = 0, 0
    for index in range(layers if multiplied is not None else 0):
        assert multiplied is not None
        for layer in linears:
            if not any(part in f"blocks.{index}.{layer.name}" for part in multiplied.keep):
                small += layer.operations
                # Activations are read, and written in 8 bits; sums of int8 are written and read in 32 bits.
                quantising += layer.rows * layer.inputs * (value + 1)
                quantising += layer.rows * layer.outputs * 8 if multiplied.format == "int8" else 0
    attention = int(4 * layers * length * keys * dim)
    format_ = "" if multiplied is None else multiplied.format
    return Forward(int(products + 2 * ends), attention, int(moved + quantising), small, format_)


def codec_work(config: Config, side: str, frames: int, height: int, width: int) -> int:
    """Return the operations of encoding or decoding ("encoder", "decoder") `frames` pictures."""
    total = 0
    for layer in vae_layers(config):
        if layer.side == side:
            pictures = 1 + (frames - 1) // layer.time
            area = (height // layer.space) * (width // layer.space)
            total += 2 * layer.inputs * layer.outputs * layer.kernel * pictures * area
    return total
