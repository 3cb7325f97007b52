"""The sizes that are measured: the published 14B model's, or small ones that only show that the bench works."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.planning.parameters import make_sizes, published_sizes, width

Grid = tuple[int, int, int]


@dataclass(frozen=True)
class Shapes:
    """The measured sizes. `reduced`: too small to show anything about a GPU."""

    reduced: bool
    #: Config of each part of the model, with defaults from `engine.planning.parameters`.
    configs: Mapping[str, Mapping[str, Any]]
    #: Tokens in (time, rows, columns) of 81 frames, by resolution.
    grids: Mapping[str, Grid]
    #: Tokens of another picture shape, for which nothing was compiled yet.
    second: Grid
    #: Tokens of plain self-attention.
    lengths: tuple[int, ...]
    #: Number of blocks of the offloaded network, and of the network at the second resolution.
    few_layers: int
    #: Frames, height and width in pixels that the autoencoder decodes.
    video: tuple[int, int, int]
    #: Bytes of the copies between host and device.
    copied: int
    #: Tokens of the prompt.
    text_tokens: int

    @property
    def heads(self) -> int:
        """Return the transformer's attention heads."""
        return int(self.configs["transformer"]["num_attention_heads"])

    @property
    def head_dim(self) -> int:
        """Return the channels of one head."""
        return int(self.configs["transformer"]["attention_head_dim"])

    @property
    def dim(self) -> int:
        """Return the transformer's channels."""
        return width(self.configs["transformer"])

    @property
    def ffn_dim(self) -> int:
        """Return the inner channels of a feed-forward."""
        return int(self.configs["transformer"]["ffn_dim"])

    @property
    def first(self) -> tuple[str, Grid]:
        """Return the first resolution and its tokens."""
        return next(iter(self.grids.items()))


FULL = Shapes(
    reduced=False,
    configs=published_sizes("wan-14b").configs,
    grids={"480p": (21, 28, 52), "720p": (21, 44, 80)},
    second=(21, 40, 40),
    lengths=(30576, 75680),
    few_layers=4,
    video=(17, 448, 832),
    copied=2**30,
    text_tokens=512,
)
_SMALL_ENCODER = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
REDUCED = Shapes(
    reduced=True,
    configs=make_sizes(
        {
            "transformer": {
                "num_attention_heads": 4,
                "attention_head_dim": 32,
                "ffn_dim": 344,
                "num_layers": 3,
                "text_dim": 64,
                "image_dim": 64,
                "text_len": 32,
                "image_tokens": 50,
                "audio_layers": 2,
                "audio_channels": 32,
                "audio_intermediate_dim": 64,
                "audio_output_dim": 64,
            },
            "vae": {"base_dim": 8},
            "text_encoder": {"vocab_size": 128, "d_model": 64, "d_ff": 128, "num_layers": 2, "num_heads": 2},
            "image_encoder": _SMALL_ENCODER,
            "audio_encoder": _SMALL_ENCODER,
        }
    ).configs,
    grids={"480p": (2, 6, 8), "720p": (2, 10, 12)},
    second=(2, 8, 10),
    lengths=(96, 160),
    few_layers=2,
    video=(5, 32, 48),
    copied=2**20,
    text_tokens=16,
)
