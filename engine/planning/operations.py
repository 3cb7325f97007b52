"""How many operations each part needs; a multiplication and an addition count as two."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from engine.planning.activations import tokens
from engine.planning.parameters import vae_layers, width

Config = Mapping[str, Any]


class Forward(NamedTuple):
    """One forward of the transformer."""

    #: Operations of matrix products, and of fused attention.
    products: int
    attention: int
    #: Bytes that norms, rotations, activations and sums read and write.
    moved: int

    @property
    def operations(self) -> int:
        return self.products + self.attention


_EXACT = 4
#: Reads and writes of the rotary tables in a block: of the grid, and of the tokens' own positions by speaker.
_TABLES, _OWN_TABLES = 6, 6.5
#: Reads and writes of compiled blocks, with speakers, in float32 values a token and channel: a prediction, counted as
#: if each norm, rotation and sum were one kernel with its casts. No card has measured it.
_FUSED = 20


def forward_work(
    config: Config,
    latents: tuple[int, int, int],
    *,
    value: int,
    speakers: int = 1,
    compiled: bool = False,
    fused: bool = False,
    stream: int = _EXACT,
) -> Forward:
    """Return the work of one forward on latents (T, h, w), with values of `value` bytes between the layers' parts.

    `compiled`: by torch.compile, block by block. `fused`: norms and rotations by our kernels. `stream`: bytes of a
    value of the residual stream.
    """
    dim, ffn, length = width(config), config["ffn_dim"], tokens(config, latents)
    frames, layers = latents[0] // config["patch_size"][0], config["num_layers"]
    context = config["text_len"] + config["image_tokens"]
    audio_tokens = speakers * config["audio_tokens"]
    products = length * (8 * dim * dim + 2 * dim * ffn) + context * 2 * dim * dim
    products += frames * audio_tokens * config["audio_output_dim"] * 2 * dim
    keys = length + context + audio_tokens + (length // frames if speakers > 1 else 0)
    ends = length * math.prod(config["patch_size"]) * (config["in_channels"] + config["out_channels"]) * dim
    # Of a token's channel.
    touched = _FUSED * _EXACT if compiled else _touched(value, stream, labelled=speakers > 1, fused=fused)
    tables = 0 if compiled else (_TABLES + (_OWN_TABLES if speakers > 1 else 0)) * config["attention_head_dim"] * _EXACT
    moved = layers * length * (touched * dim + tables + 2 * ffn * value)
    return Forward(int(2 * (layers * products + ends)), int(4 * layers * length * keys * dim), int(moved))


def _touched(value: int, stream: int, *, labelled: bool, fused: bool) -> int:
    """Return the bytes that a block reads and writes of each token's channel, without the feed-forward's inner ones.

    Counted in engine.multitalk: every operator reads its inputs and writes its output.
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
