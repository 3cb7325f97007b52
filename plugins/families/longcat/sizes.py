"""Sizes for plans: parameters by how they are kept, the cache, and the audio encoder of 1.5."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from engine.planning.parameters import Count
from plugins.families.longcat.frames import FrameLayout
from plugins.families.longcat.versions import version

Config = Mapping[str, Any]

_PUBLISHED: Config = {
    "in_channels": 16,
    "out_channels": 16,
    "hidden_size": 4096,
    "depth": 48,
    "num_heads": 32,
    "caption_channels": 4096,
    "mlp_ratio": 4,
    "adaln_tembed_dim": 512,
    "frequency_embedding_size": 256,
    "patch_size": (1, 2, 2),
    "text_tokens_zero_pad": True,
    "audio_window": 5,
    "intermediate_dim": 512,
    "output_dim": 768,
    "context_tokens": 32,
    "vae_scale": 4,
    "audio_prenorm": False,
    "class_range": 24,
    "class_interval": 4,
    "text_len": 512,
}
#: Config of the encoder of Whisper large-v3, as far as sizes need it.
WHISPER_LARGE_V3: Config = {
    "num_mel_bins": 128,
    "d_model": 1280,
    "encoder_layers": 32,
    "encoder_attention_heads": 20,
    "encoder_ffn_dim": 5120,
    "max_source_positions": 1500,
}


def published_config(name: str) -> dict[str, Any]:
    """Return the transformer's published sizes of version "1.0" or "1.5". Raises ConfigError for another name."""
    known = version(name)
    return {**_PUBLISHED, "audio_block": known.audio_block, "audio_channel": known.audio_channel}


def inner_width(config: Config) -> int:
    """Return the inner width of the feed-forward; the same as `layers.feed_forward_width`, without torch."""
    return 256 * -(-(2 * int(config["mlp_ratio"]) * int(config["hidden_size"]) // 3) // 256)


def block_count(config: Config) -> Count:
    """Return the parameters of one block: `linear` are those that the published int8 format quantises."""
    dim, time, audio = config["hidden_size"], config["adaln_tembed_dim"], config["output_dim"]
    inner, head = inner_width(config), dim // config["num_heads"]
    # Modulations, self-attention, text attention, audio attention: (inputs, outputs), with bias.
    biased = [(time, 6 * dim), (time, 3 * dim), (dim, 3 * dim), (dim, dim)]
    biased += [(dim, dim), (dim, 2 * dim), (dim, dim), (dim, dim), (audio, 2 * dim), (dim, dim)]
    plain = [(dim, inner), (dim, inner), (inner, dim)]
    norms = 4 * dim + 6 * head + (2 * audio if config["audio_prenorm"] else 0)
    return Count(
        cast=sum(outputs for _, outputs in biased),
        float32=norms,
        linear=sum(inputs * outputs for inputs, outputs in biased + plain),
        rows=sum(outputs for _, outputs in biased + plain),
    )


def root_count(config: Config) -> Count:
    """Return the parameters outside of the blocks."""
    dim, time, patch = config["hidden_size"], config["adaln_tembed_dim"], math.prod(config["patch_size"])
    hidden, out = config["intermediate_dim"], config["output_dim"]
    features = config["audio_block"] * config["audio_channel"]
    grouped = config["audio_window"] + config["vae_scale"] - 1
    cast = _linears(
        (config["caption_channels"], dim),
        (dim, dim),
        (config["audio_window"] * features, hidden),
        (grouped * features, hidden),
        (hidden, hidden),
        (hidden, config["context_tokens"] * out),
    )
    float32 = _linears(
        (config["in_channels"] * patch, dim),
        (config["frequency_embedding_size"], time),
        (time, time),
        (time, 2 * dim),
        (dim, config["out_channels"] * patch),
    )
    return Count(cast=cast, float32=float32 + 2 * out)


def transformer_count(config: Config) -> Count:
    """Return the parameters of the whole transformer."""
    return block_count(config) * int(config["depth"]) + root_count(config)


def whisper_parameters(config: Config = WHISPER_LARGE_V3) -> int:
    """Return the parameters of Whisper's encoder, which are kept in float32."""
    dim, ffn = int(config["d_model"]), int(config["encoder_ffn_dim"])
    convolutions = (3 * int(config["num_mel_bins"]) + 1) * dim + (3 * dim + 1) * dim
    # Keys have no bias.
    layer = 4 * dim * dim + 3 * dim + (dim + 1) * ffn + (ffn + 1) * dim + 4 * dim
    positions = int(config["max_source_positions"]) * dim
    return int(convolutions + positions + int(config["encoder_layers"]) * layer + 2 * dim)


def cache_bytes(config: Config, layout: FrameLayout, rows: int, columns: int, *, value: int) -> int:
    """Return the bytes of keys and values of the given frames, (rows, columns) latents each, `value` bytes a number.

    One cache serves all passes and steps of a window.
    """
    return 2 * int(config["depth"]) * int(config["hidden_size"]) * layout.given * _tokens(config, rows, columns) * value


def conditions_bytes(
    config: Config, layout: FrameLayout, rows: int, columns: int, *, value: int, voices: int, passes: int
) -> int:
    """Return the bytes of a window's conditions: text and voices of each pass, one shared rotary table."""
    dim, frames = int(config["hidden_size"]), layout.noisy
    context = int(config["text_len"]) * dim * value
    audio = frames * voices * int(config["context_tokens"]) * int(config["output_dim"]) * value
    rotary = layout.total * _tokens(config, rows, columns) * (dim // int(config["num_heads"])) * 4
    return passes * (context + audio) + rotary


def _tokens(config: Config, rows: int, columns: int) -> int:
    _, height, width = config["patch_size"]
    return int((rows // height) * (columns // width))


def _linears(*layers: tuple[int, int]) -> int:
    return sum((inputs + 1) * outputs for inputs, outputs in layers)
