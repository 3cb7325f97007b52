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


#: Reads and writes of a block's element-wise work, in float32 values a token and channel, counted in
#: engine.multitalk.transformer and .attention: six norms with their casts, two rotations, four sums.
_PASSES = 58
#: The same for the rotation by speaker.
_LABELLED = 10
#: The same for compiled blocks, with speakers: a prediction, counted as if each norm, rotation and sum were one kernel
#: with its casts. No card has measured it.
_FUSED = 20


def forward_work(
    config: Config, latents: tuple[int, int, int], *, value: int, speakers: int = 1, compiled: bool = False
) -> Forward:
    """Return the work of one forward on latents (T, h, w); `compiled`: by torch.compile, block by block."""
    dim, ffn, length = width(config), config["ffn_dim"], tokens(config, latents)
    frames, layers = latents[0] // config["patch_size"][0], config["num_layers"]
    context = config["text_len"] + config["image_tokens"]
    audio_tokens = speakers * config["audio_tokens"]
    products = length * (8 * dim * dim + 2 * dim * ffn) + context * 2 * dim * dim
    products += frames * audio_tokens * config["audio_output_dim"] * 2 * dim
    keys = length + context + audio_tokens + (length // frames if speakers > 1 else 0)
    ends = length * math.prod(config["patch_size"]) * (config["in_channels"] + config["out_channels"]) * dim
    passes = _FUSED if compiled else _PASSES + (_LABELLED if speakers > 1 else 0)
    moved = layers * (passes * 4 * length * dim + 2 * length * ffn * value)
    return Forward(int(2 * (layers * products + ends)), int(4 * layers * length * keys * dim), int(moved))


def codec_work(config: Config, side: str, frames: int, height: int, width: int) -> int:
    """Return the operations of encoding or decoding ("encoder", "decoder") `frames` pictures."""
    total = 0
    for layer in vae_layers(config):
        if layer.side == side:
            pictures = 1 + (frames - 1) // layer.time
            area = (height // layer.space) * (width // layer.space)
            total += 2 * layer.inputs * layer.outputs * layer.kernel * pictures * area
    return total
