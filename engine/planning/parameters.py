"""Count the parameters of each part of a model from its config, and in which width they are kept."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

from engine.errors import SourceError

PARTS = ("transformer", "vae", "text_encoder", "image_encoder", "audio_encoder")
Config = Mapping[str, Any]


@dataclass(frozen=True)
class Quant:
    """How quantised linear layers are kept: bytes per value, and additional bytes per row."""

    value: float
    row: int


@dataclass(frozen=True)
class Count:
    """Parameters of one part by how they are kept: cast to the model's dtype, in float32, or quantisable."""

    cast: int = 0
    float32: int = 0
    #: Weights of the linear layers of the transformer's or text encoder's blocks, and their output rows, which get
    #: scales when quantised.
    linear: int = 0
    rows: int = 0

    def __add__(self, other: Count) -> Count:
        return Count(
            self.cast + other.cast,
            self.float32 + other.float32,
            self.linear + other.linear,
            self.rows + other.rows,
        )

    def __mul__(self, times: int) -> Count:
        return Count(self.cast * times, self.float32 * times, self.linear * times, self.rows * times)

    @property
    def parameters(self) -> int:
        return self.cast + self.float32 + self.linear

    def bytes(self, width: int, quant: Quant | None = None) -> int:
        """Return the bytes if a value of the model's dtype has `width` bytes and linear layers are kept as `quant`."""
        if quant is None:
            return (self.cast + self.linear) * width + self.float32 * 4
        return self.cast * width + self.float32 * 4 + int(self.linear * quant.value) + self.rows * quant.row


@dataclass(frozen=True)
class Sizes:
    """Everything that is known about a model without its weights."""

    #: Of each of PARTS.
    configs: Mapping[str, Config]
    #: Of each of PARTS; for the transformer, of the whole.
    counts: Mapping[str, Count]
    #: One block of the transformer, and everything outside the blocks.
    block: Count
    root: Count
    #: What the network costs (`engine.planning.network.Costs`); None: as MultiTalk's.
    costs: Any = None


def read_sizes(folder: Path) -> Sizes:
    """Read the sizes of the model in `folder` from its configs. Raises SourceError if one cannot be read."""
    configs = {}
    for part in PARTS:
        path = folder / part / "config.json"
        try:
            configs[part] = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise SourceError(f"{path} cannot be read", field="source", hint="get this file again") from error
    return make_sizes(configs)


def published_configs(name: str) -> dict[str, dict[str, Any]]:
    """Return the configs of a published architecture, such as "wan-14b", by part. Raises SourceError for others."""
    if not name:
        raise SourceError(
            "plans and rehearsals do not know the sizes of this model, whose network is of another kind",
            field="model.architecture",
            hint="rehearse a model of the family multitalk",
        )
    table = files("engine.planning") / "architectures" / f"{name}.json"
    if not table.is_file():
        raise SourceError(f"no architecture named {name!r}", field="model.architecture", hint="wan-14b")
    configs: dict[str, dict[str, Any]] = json.loads(table.read_text("utf-8"))
    return configs


@cache
def published_sizes(name: str) -> Sizes:
    """Return the sizes of a published architecture. Raises SourceError for another name."""
    return make_sizes(published_configs(name))


def make_sizes(configs: Mapping[str, Config]) -> Sizes:
    """Count the parameters of every part. Raises SourceError for the config of an unknown network."""
    filled = {part: {**_DEFAULTS.get(part, {}), **configs[part]} for part in PARTS}
    try:
        block, root = _block(filled["transformer"]), _root(filled["transformer"])
        counts = {
            "transformer": block * filled["transformer"]["num_layers"] + root,
            "vae": Count(float32=sum(layer.parameters for layer in vae_layers(filled["vae"]))),
            "text_encoder": _text(filled["text_encoder"]),
            "image_encoder": Count(cast=_image(filled["image_encoder"])),
            "audio_encoder": Count(float32=_audio(filled["audio_encoder"])),
        }
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise SourceError(f"a config of the model has no valid {error}", field="source") from error
    return Sizes(filled, counts, block, root)


def width(transformer: Config) -> int:
    """Return the transformer's channels."""
    return int(transformer["num_attention_heads"] * transformer["attention_head_dim"])


# --- transformer ------------------------------------------------------------------------------------------------------


def _block(config: Config) -> Count:
    dim, ffn = width(config), config["ffn_dim"]
    # Self-attention, text and image attention, audio attention, feed-forward: (inputs, outputs).
    layers = [(dim, dim)] * (4 + 6 + 2) + [(config["audio_output_dim"], 2 * dim), (dim, ffn), (ffn, dim)]
    rows = sum(outputs for _, outputs in layers)
    norms = 5 * dim + (4 if config["cross_attn_norm"] else 2) * dim + 6 * dim
    return Count(cast=rows, float32=norms, linear=sum(inputs * outputs for inputs, outputs in layers), rows=rows)


def _root(config: Config) -> Count:
    dim, patch = width(config), math.prod(config["patch_size"])
    image, hidden, out = config["image_dim"], config["audio_intermediate_dim"], config["audio_output_dim"]
    audio_width = config["audio_layers"] * config["audio_channels"]
    grouped = config["audio_window"] + config["vae_scale_temporal"] - 1
    cast = _linears(
        (config["text_dim"], dim),
        (dim, dim),
        (image, image),
        (image, dim),
        (config["audio_window"] * audio_width, hidden),
        (grouped * audio_width, hidden),
        (hidden, hidden),
        (hidden, config["audio_tokens"] * out),
    )
    float32 = _linears(
        (config["in_channels"] * patch, dim),
        (config["freq_dim"], dim),
        (dim, dim),
        (dim, 6 * dim),
        (dim, config["out_channels"] * patch),
    )
    return Count(cast=cast, float32=float32 + 2 * image + 2 * dim + 2 * out + 2 * dim)


def _linears(*layers: tuple[int, int]) -> int:
    return sum((inputs + 1) * outputs for inputs, outputs in layers)


# --- encoders ---------------------------------------------------------------------------------------------------------


def _text(config: Config) -> Count:
    dim, inner, ffn = config["d_model"], config["num_heads"] * config["d_kv"], config["d_ff"]
    gates = 3 if str(config["feed_forward_proj"]).startswith("gated") else 2
    bias = config["relative_attention_num_buckets"] * config["num_heads"]
    linear = 4 * dim * inner + gates * dim * ffn
    # Queries, keys and values; the inner values; what is added to the stream, by attention and feed-forward.
    rows = 3 * inner + (gates - 1) * ffn + 2 * dim
    cast = config["vocab_size"] * dim + config["num_layers"] * (2 * dim + bias) + dim
    return Count(cast=cast, linear=config["num_layers"] * linear, rows=config["num_layers"] * rows)


def _encoder_layer(dim: int, ffn: int) -> int:
    return 4 * dim * (dim + 1) + (dim + 1) * ffn + (ffn + 1) * dim + 4 * dim


def _image(config: Config) -> int:
    dim, patch = config["hidden_size"], config["patch_size"]
    tokens = (config["image_size"] // patch) ** 2 + 1
    embeddings = dim + config["num_channels"] * patch**2 * dim + tokens * dim
    layers = config["num_hidden_layers"] * _encoder_layer(dim, config["intermediate_size"])
    return int(embeddings + layers + 4 * dim)


def _audio(config: Config) -> int:
    dim, channels = config["hidden_size"], config["conv_dim"]
    total = 0
    for index, (inputs, outputs, kernel) in enumerate(
        zip([1, *channels[:-1]], channels, config["conv_kernel"], strict=True)
    ):
        normed = config["feat_extract_norm"] == "layer" or index == 0
        total += inputs * outputs * kernel + (outputs if config["conv_bias"] else 0) + (2 * outputs if normed else 0)
    total += 2 * channels[-1] + (channels[-1] + 1) * dim
    masked = config["mask_time_prob"] > 0 or config["mask_feature_prob"] > 0
    kernel = config["num_conv_pos_embeddings"]
    total += dim * (dim // config["num_conv_pos_embedding_groups"]) * kernel + kernel + dim
    layers = config["num_hidden_layers"] * _encoder_layer(dim, config["intermediate_size"])
    return int(total + (dim if masked else 0) + 2 * dim + layers)


# --- video autoencoder ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layer:
    """One convolution or norm of the autoencoder, and the size of its output."""

    #: "encoder" or "decoder".
    side: str
    inputs: int
    #: 0 for a norm, which has one value per input channel.
    outputs: int
    #: Number of kernel values: 27 for 3 x 3 x 3.
    kernel: int = 1
    #: Sides of the picture, and frames after the first, are divided by these at the layer's output.
    space: int = 1
    time: int = 1
    bias: bool = True

    @property
    def parameters(self) -> int:
        if not self.outputs:
            return self.inputs
        return self.inputs * self.outputs * self.kernel + (self.outputs if self.bias else 0)


def vae_layers(config: Config) -> Iterator[Layer]:
    """Yield the layers of Wan 2.1's autoencoder (diffusers' AutoencoderKLWan). Raises SourceError for Wan 2.2's."""
    if config["is_residual"] or config["attn_scales"]:
        raise SourceError("this video autoencoder is not Wan 2.1's", field="vae", hint="its size is not known here")
    latent = config["z_dim"]
    yield from _encoder(config)
    yield Layer("encoder", 2 * latent, 2 * latent, 1, *scales(config))
    yield Layer("decoder", latent, latent, 1, *scales(config))
    yield from _decoder(config)


def scales(config: Config) -> tuple[int, int]:
    """Return the pixels along a side, and the frames after the first, per latent."""
    return _patch(config) * 2 ** (len(config["dim_mult"]) - 1), 2 ** sum(map(bool, config["temperal_downsample"]))


def _patch(config: Config) -> int:
    return int(config["patch_size"] or 1)


def _encoder(config: Config) -> Iterator[Layer]:
    base, last = config["base_dim"], len(config["dim_mult"]) - 1
    space, time = _patch(config), 1
    inputs = base
    yield Layer("encoder", config["in_channels"], base, 27, space)
    for index, factor in enumerate(config["dim_mult"]):
        outputs = base * factor
        for _ in range(config["num_res_blocks"]):
            yield from _residual("encoder", inputs, outputs, space, time)
            inputs = outputs
        if index != last:
            space *= 2
            yield Layer("encoder", outputs, outputs, 9, space, time)
            if config["temperal_downsample"][index]:
                time *= 2
                yield Layer("encoder", outputs, outputs, 3, space, time)
    yield from _middle("encoder", inputs, space, time)
    yield Layer("encoder", inputs, 0, 1, space, time)
    yield Layer("encoder", inputs, 2 * config["z_dim"], 27, space, time)


def _decoder(config: Config) -> Iterator[Layer]:
    base, factors = config["base_dim"], [config["dim_mult"][-1], *reversed(config["dim_mult"])]
    space, time = scales(config)
    last = len(config["dim_mult"]) - 1
    upward = list(reversed(config["temperal_downsample"]))
    yield Layer("decoder", config["z_dim"], base * factors[0], 27, space, time)
    yield from _middle("decoder", base * factors[0], space, time)
    for index, (before, after) in enumerate(pairwise(factors)):
        inputs, outputs = base * before // (2 if index else 1), base * after
        for _ in range(config["num_res_blocks"] + 1):
            yield from _residual("decoder", inputs, outputs, space, time)
            inputs = outputs
        if index != last:
            if upward[index]:
                yield Layer("decoder", outputs, 2 * outputs, 3, space, time)
                time //= 2
            space //= 2
            yield Layer("decoder", outputs, outputs // 2, 9, space, time)
    yield Layer("decoder", base * factors[-1], 0, 1, space, time)
    yield Layer("decoder", base * factors[-1], config["out_channels"], 27, space, time)


def _residual(side: str, inputs: int, outputs: int, space: int, time: int) -> Iterator[Layer]:
    yield Layer(side, inputs, 0, 1, space, time)
    yield Layer(side, inputs, outputs, 27, space, time)
    yield Layer(side, outputs, 0, 1, space, time)
    yield Layer(side, outputs, outputs, 27, space, time)
    if inputs != outputs:
        yield Layer(side, inputs, outputs, 1, space, time)


def _middle(side: str, channels: int, space: int, time: int) -> Iterator[Layer]:
    yield from _residual(side, channels, channels, space, time)
    yield Layer(side, channels, 0, 1, space, time)
    yield Layer(side, channels, 3 * channels, 1, space, time)
    yield Layer(side, channels, channels, 1, space, time)
    yield from _residual(side, channels, channels, space, time)


#: The libraries' defaults for keys that a config.json does not have.
_DEFAULTS: Mapping[str, Config] = {
    "transformer": {
        "patch_size": (1, 2, 2),
        "num_attention_heads": 40,
        "attention_head_dim": 128,
        "in_channels": 36,
        "out_channels": 16,
        "text_dim": 4096,
        "freq_dim": 256,
        "ffn_dim": 13824,
        "num_layers": 40,
        "cross_attn_norm": True,
        "image_dim": 1280,
        "text_len": 512,
        "image_tokens": 257,
        "audio_window": 5,
        "audio_layers": 12,
        "audio_channels": 768,
        "audio_intermediate_dim": 512,
        "audio_output_dim": 768,
        "audio_tokens": 32,
        "vae_scale_temporal": 4,
    },
    "vae": {
        "base_dim": 96,
        "z_dim": 16,
        "dim_mult": (1, 2, 4, 4),
        "num_res_blocks": 2,
        "attn_scales": (),
        "temperal_downsample": (False, True, True),
        "is_residual": False,
        "in_channels": 3,
        "out_channels": 3,
        "patch_size": None,
    },
    "text_encoder": {
        "vocab_size": 250112,
        "d_model": 512,
        "d_kv": 64,
        "d_ff": 1024,
        "num_layers": 8,
        "num_heads": 6,
        "relative_attention_num_buckets": 32,
        "feed_forward_proj": "gated-gelu",
    },
    "image_encoder": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_channels": 3,
        "image_size": 224,
        "patch_size": 32,
    },
    "audio_encoder": {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "feat_extract_norm": "group",
        "conv_dim": (512, 512, 512, 512, 512, 512, 512),
        "conv_stride": (5, 2, 2, 2, 2, 2, 2),
        "conv_kernel": (10, 3, 3, 3, 3, 2, 2),
        "conv_bias": False,
        "num_conv_pos_embeddings": 128,
        "num_conv_pos_embedding_groups": 16,
        "mask_time_prob": 0.05,
        "mask_feature_prob": 0.0,
    },
}
