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


_EXACT = 4
#: Reads and writes of the rotary tables in a block: of the grid, and of the tokens' own positions by speaker.
_TABLES, _OWN_TABLES = 6, 6.5


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
    """Return the linear layers of a block for latents (T, h, w), by the names of MultiTalk's layers."""
    dim, ffn, length = width(config), int(config["ffn_dim"]), tokens(config, latents)
    heard = latents[0] // config["patch_size"][0] * speakers * config["audio_tokens"]
    square: dict[str, int] = {
        **dict.fromkeys(("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0"), length),
        **dict.fromkeys(("attn2.to_q", "attn2.to_out.0", "audio_attn.to_q", "audio_attn.to_out"), length),
        **dict.fromkeys(("attn2.to_k", "attn2.to_v"), int(config["text_len"])),
        **dict.fromkeys(("attn2.add_k_proj", "attn2.add_v_proj"), int(config["image_tokens"])),
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
    fused: bool = False,
    stream: int = _EXACT,
) -> Forward:
    """Return the work of one forward on latents (T, h, w), with values of `value` bytes between the layers' parts.

    `multiplied`: what runs in 8 bits; `compiled`: by torch.compile, block by block. `fused`: norms and rotations by our
    kernels. `stream`: bytes of a value of the residual stream.
    """
    dim, ffn, length = width(config), config["ffn_dim"], tokens(config, latents)
    frames, layers = latents[0] // config["patch_size"][0], config["num_layers"]
    context = config["text_len"] + config["image_tokens"]
    audio_tokens = speakers * config["audio_tokens"]
    linears = block_linears(config, latents, speakers=speakers)
    products = layers * sum(layer.operations for layer in linears)
    keys = length + context + audio_tokens + (length // frames if speakers > 1 else 0)
    ends = length * math.prod(config["patch_size"]) * (config["in_channels"] + config["out_channels"]) * dim
    # Of a token's channel.
    touched = _touched(value, stream, labelled=speakers > 1, fused=fused or compiled)
    if compiled:
        # A prediction: the compiler joins each norm to the sum whose result it reads.
        touched -= 4 * stream
    tables = 0 if compiled else (_TABLES + (_OWN_TABLES if speakers > 1 else 0)) * config["attention_head_dim"] * _EXACT
    moved = layers * length * (touched * dim + tables + 2 * ffn * value)
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


def _touched(value: int, stream: int, *, labelled: bool, fused: bool) -> int:
    """Return the bytes that a block reads and writes of each token's channel, without the feed-forward's inner ones.

    Counted in engine.network: every operator reads its inputs and writes its output.
    """
    cast = 0 if value == _EXACT else _EXACT + value
    if fused:
        norm, rotated, query, turned = stream + value, 2 * value, 2 * value, 2 * value
    else:
        norm = (0 if stream == _EXACT else stream + _EXACT) + 2 * _EXACT + cast
        # The norm's sum, the product with its weight, the rotation.
        rotated = value + (value + _EXACT) + 2 * _EXACT + cast
        query = value + (value + _EXACT) + (_EXACT + value)
        turned = 2 * cast + 2 * _EXACT
    sums = 4 * (2 * stream + value) + 3 * value
    return 4 * norm + 2 * rotated + query + sums + (turned if labelled else 0)


def codec_work(config: Config, side: str, frames: int, height: int, width: int) -> int:
    """Return the operations of encoding or decoding ("encoder", "decoder") `frames` pictures."""
    total = 0
    for layer in vae_layers(config):
        if layer.side == side:
            pictures = 1 + (frames - 1) // layer.time
            area = (height // layer.space) * (width // layer.space)
            total += 2 * layer.inputs * layer.outputs * layer.kernel * pictures * area
    return total
