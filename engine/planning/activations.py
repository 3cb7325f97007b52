"""Activation memory: the peak of temporary tensors of each part while it computes, in bytes, without weights.

Each function follows the code it counts, tensor by tensor, and adds the tensors that are alive at the same time.
tests/planning/test_estimate.py checks them against torch's allocator, `multitalk bench plan` against whole processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from engine.components import StepCache
from engine.planning.parameters import width

Config = Mapping[str, Any]
#: Bytes of a float32.
_EXACT = 4
#: Frames of the previous chunk that a causal convolution keeps.
_KEPT = 2
#: Pixel frames that the autoencoder encodes or decodes at a time.
_CHUNK = 4
#: Pixels whose colours are converted at a time on a GPU.
_COLORED = 2**22
#: Convolutions with fewer values than this (without the last dimension) take another path on a CPU; see
#: engine.network.codec.
SLOW_BELOW = 20480
#: Pixels times base_dim that are decoded at a time on a CPU; see engine.network.codec_cpu.
TOGETHER = 2**20


def tokens(config: Config, latents: tuple[int, int, int]) -> int:
    """Return the transformer's tokens for latents (T, h, w)."""
    frames, rows, columns = config["patch_size"]
    return int((latents[0] // frames) * (latents[1] // rows) * (latents[2] // columns))


def forward_bytes(
    config: Config,
    latents: tuple[int, int, int],
    *,
    value: int,
    speakers: int = 1,
    adapted: bool = False,
    stream: int = _EXACT,
    device: str = "cuda",
) -> int:
    """Return the peak of one forward of MultiTalk's network with values of `value` bytes.

    `adapted`: attached LoRAs are switched on. `stream`: bytes of a value of the residual stream.
    """
    dim, ffn, length = width(config), config["ffn_dim"], tokens(config, latents)
    held, thin, wide = length * dim * stream, length * dim * value, length * ffn * value
    exact = length * dim * _EXACT
    # Feed-forward: the block's tokens before and after attention; input and output of self-attention, inputs of audio
    # attention and of the feed-forward; its inner values before and after the activation.
    # With a LoRA also its part of a layer's output, in addition to the output and their sum. A CPU activates in place,
    # and holds the output of the feed-forward beside its inner values.
    inner = wide + thin if device == "cpu" else 2 * wide
    forwarding = 2 * held + 4 * thin + inner + (wide if adapted else 0)
    # Self-attention while keys are rotated: tokens and their norm; queries; keys before, while and after.
    rotated = exact if speakers > 1 else thin
    cast = 0 if value == _EXACT else thin
    attending = held + 2 * thin + rotated + exact + cast
    # Audio attention while queries are rotated by speaker: the block's tokens, four thin ones, the queries in float32,
    # rotated and cast, and the tables of every token's own position.
    labels = 3 * length * config["attention_head_dim"] * _EXACT // 2
    labelling = 2 * held + 4 * thin + (exact + cast if cast else 0) + labels if speakers > 1 else 0
    # Any attention while its output is projected: queries, output, the output in another layout, and its projection.
    projecting = 2 * held + 7 * thin
    worst: int = max(forwarding, attending, labelling, projecting)
    return worst + conditions_bytes(config, latents, value=value, speakers=speakers, passes=1)


def conditions_bytes(config: Config, latents: tuple[int, int, int], *, value: int, speakers: int, passes: int) -> int:
    """Return the bytes of a window's conditions: text, picture and voices of each branch, one shared rotary table."""
    dim, length = width(config), tokens(config, latents)
    context = (config["image_tokens"] + config["text_len"]) * dim * value
    audio = latents[0] * speakers * config["audio_tokens"] * config["audio_output_dim"] * value
    rotary = length * config["attention_head_dim"] * _EXACT
    return int(passes * (context + audio) + rotary)


def cache_bytes(config: Config, latents: tuple[int, int, int], *, cache: StepCache | None, passes: int) -> int:
    """Return the bytes a step cache keeps from one evaluation of the network to the next; None: no cache."""
    if cache is None:
        return 0
    length, channels = tokens(config, latents), width(config)
    return cache.cost(branches=passes, tokens=length, channels=channels, blocks=int(config["num_layers"])).kept


def tiles(height: int, width: int, tile: int) -> tuple[list[int], list[int]]:
    """Return heights and widths of the tiles that a picture is cut into, each three quarters after the other."""
    if not tile or max(height, width) <= tile:
        return [height], [width]
    step = tile * 3 // 4
    return tuple([min(tile, side - begin) for begin in range(0, side, step)] for side in (height, width))  # type: ignore[return-value]


def encode_bytes(config: Config, frames: int, height: int, width: int, *, device: str = "cuda", tile: int = 0) -> int:
    """Return the peak of encoding `frames` pictures, with their pixels (engine.network.codec).

    On CUDA without what its library takes, which is `workspace_bytes`. `tile` is the side of the VAE's tiles, 0 for
    none.
    """
    rows, columns = map(max, tiles(height, width, tile))
    one = _encoding(config, frames, rows, columns, device)[0]
    return one + 3 * frames * (height * width - rows * columns) * _EXACT


def decode_bytes(
    config: Config, frames: int, height: int, width: int, *, device: str = "cuda", tile: int = 0, value: int = _EXACT
) -> int:
    """Return the peak of decoding to `frames` pictures, with their pixels; see `encode_bytes`.

    The decoder computes with values of `value` bytes; the pixels that it returns are float32.
    """
    rows, columns = tiles(height, width, tile)
    # Its pixels, beside the ones that are returned if they are converted.
    converted = 3 * frames * height * width * (value + _EXACT) if value != _EXACT else 0
    if len(rows) * len(columns) == 1:
        return max(_decoding(config, frames, height, width, device, value)[0], converted)
    pixel = 3 * frames * value
    # All tiles are decoded before they are put together: in rows, and those to pictures.
    decoded = peak = 0
    for tall in rows:
        for wide in columns:
            peak = max(peak, decoded + _decoding(config, frames, tall, wide, device, value)[0])
            decoded += pixel * tall * wide
    return max(peak, decoded + 2 * pixel * height * width, converted)


def workspace_bytes(
    config: Config, side: str, frames: int, height: int, width: int, *, tile: int = 0, value: int = _EXACT
) -> int:
    """Return cuDNN's workspace for encoding or decoding ("encoder", "decoder") in bytes: an assumption.

    Its kernels for tensor cores want another layout than torch's tensors have, so input and output of a convolution
    are there a second time.
    """
    rows, columns = map(max, tiles(height, width, tile))
    if side == "encoder":
        return _encoding(config, frames, rows, columns, "cuda")[1]
    return _decoding(config, frames, rows, columns, "cuda", value)[1]


def _encoding(config: Config, frames: int, height: int, width: int, device: str) -> tuple[int, int]:
    patch = int(config["patch_size"] or 1)
    walk = _Walk(device, min(frames, _CHUNK), height // patch, width // patch)
    pixels = 3 * frames * height * width * _EXACT
    channels, last = config["base_dim"], len(config["dim_mult"]) - 1
    walk.convolution(config["in_channels"], channels)
    for index, factor in enumerate(config["dim_mult"]):
        for _ in range(config["num_res_blocks"]):
            walk.residual(channels, config["base_dim"] * factor)
            channels = config["base_dim"] * factor
        if index != last:
            walk.shrink(channels)
            if config["temperal_downsample"][index]:
                walk.keep(walk.values(channels, 1))
                walk.time = max(1, walk.time // 2)
    walk.residual(channels, channels)
    walk.residual(channels, channels)
    walk.convolution(channels, 2 * config["z_dim"])
    # The caller's pictures; patches are a copy of them.
    return (2 if patch > 1 else 1) * pixels + walk.peak, walk.workspace


def _decoding(
    config: Config, frames: int, height: int, width: int, device: str, value: int = _EXACT
) -> tuple[int, int]:
    patch, last = int(config["patch_size"] or 1), len(config["dim_mult"]) - 1
    together = _together(config, frames, height, width, device, value)
    walk = _Walk(device, together, height // patch // 2**last, width // patch // 2**last, value)
    pixels = 3 * frames * height * width * value
    base, factors = config["base_dim"], [config["dim_mult"][-1], *reversed(config["dim_mult"])]
    upward = list(reversed(config["temperal_downsample"]))
    channels = base * factors[0]
    walk.convolution(config["z_dim"], channels)
    walk.residual(channels, channels)
    walk.residual(channels, channels)
    for index, (before, after) in enumerate(pairwise(factors)):
        channels = base * before // (2 if index else 1)
        entered = walk.values(channels)
        for number in range(config["num_res_blocks"] + 1):
            # The caller still holds the input of the stage.
            walk.residual(channels, base * after, outer=entered if number and not walk.direct else 0)
            channels = base * after
        if index != last:
            if upward[index] and frames > 1:
                walk.keep(walk.values(channels, _KEPT))
                # Twice the frames: the convolution's output, and a copy with its frames in order.
                walk.moment(6 * walk.values(channels))
                walk.time *= 2
            walk.grow(channels)
    walk.convolution(base * factors[-1], config["out_channels"])
    if together > 1:
        return walk.peak + pixels, walk.workspace
    # All decoded frames are concatenated again for each chunk, and clipped at the end.
    return max(walk.peak + pixels, walk.cached * value + 2 * pixels), walk.workspace


def _together(config: Config, frames: int, height: int, width: int, device: str, value: int) -> int:
    """Return how many latents are decoded at a time (engine.network.codec_cpu)."""
    if device != "cpu" or value != _EXACT:
        return 1
    return max(1, min((frames - 1) // _CHUNK, TOGETHER // (int(config["base_dim"]) * height * width)))


class _Walk:
    """Counts values that are alive at the peak; what convolutions keep for the next chunk is summed up."""

    def __init__(self, device: str, time: int, rows: int, columns: int, value: int = _EXACT) -> None:
        self.time, self.rows, self.columns = time, rows, columns
        self._value = value
        self.cached = 0
        self._cpu = device == "cpu"
        #: Whether engine.network.codec_cpu computes this.
        self.direct = self._cpu and value == _EXACT
        self._worst = self._layouts = 0

    @property
    def peak(self) -> int:
        """Return the bytes of the peak, including everything kept from the previous chunk."""
        return (self._worst + self.cached) * self._value

    @property
    def workspace(self) -> int:
        """Return the most bytes that a CUDA library may need in addition."""
        return self._layouts * self._value

    def values(self, channels: int, time: int | None = None, border: int = 0) -> int:
        """Return the number of values of a tensor at this point, with a border around its pictures."""
        frames = self.time if time is None else time
        return channels * frames * (self.rows + border) * (self.columns + border)

    def keep(self, values: int) -> None:
        self.cached += values

    def moment(self, values: int) -> None:
        self._worst = max(self._worst, values)

    def convolution(self, inputs: int, outputs: int, held: int = 0) -> None:
        """A causal convolution of 3 x 3 x 3 over a normed and activated input that its caller still holds."""
        input_values, cached_values, output_values = (
            self.values(inputs),
            self.values(inputs, _KEPT),
            self.values(outputs),
        )
        padded = self.values(inputs, self.time + _KEPT, 2)
        self.keep(cached_values)
        if self.direct:
            # The input behind the frames kept of the last chunk; the output, and the next frame's part of it.
            self.moment(held + input_values + self.values(inputs, self.time + _KEPT) + 2 * output_values)
            return
        # The input, and the frames kept from it; concatenated with those of the last chunk, and padded.
        self.moment(held + input_values + cached_values + input_values + cached_values + padded)
        self.moment(
            held + input_values + cached_values + padded + output_values + self._library(inputs, padded, output_values)
        )

    def _library(self, inputs: int, padded: int, outputs: int) -> int:
        """Return the values that a convolution needs on a CPU in addition to input and output."""
        if not self._cpu:
            self._layouts = max(self._layouts, padded + outputs)
            return 0
        if inputs * (self.time + _KEPT) * (self.rows + 2) > SLOW_BELOW:
            return padded
        # engine.network.codec turns a small input into frames with their neighbours; oneDNN copies them to its
        # layout.
        return 2 * self.values(3 * inputs, border=2)

    def residual(self, inputs: int, outputs: int, outer: int = 0) -> None:
        """Norm, activation and convolution twice, with the block's input, its shortcut and the caller's tensors."""
        input_values, output_values = self.values(inputs), self.values(outputs)
        held = outer + input_values + (output_values if inputs != outputs else 0)
        if self.direct:
            # The shortcut is computed last. The first convolution's input is the block's.
            self.convolution(inputs, outputs, outer)
            self.convolution(outputs, outputs, outer + input_values)
            return
        # Normed values times their weights, in addition to the values themselves.
        self.moment(held + 2 * input_values)
        self.convolution(inputs, outputs, held)
        self.moment(held + 3 * output_values)
        self.convolution(outputs, outputs, held)

    def shrink(self, channels: int) -> None:
        """Halve the pictures: a padded copy, a copy in another layout, and the output."""
        input_values = self.values(channels)
        self.rows, self.columns = self.rows // 2, self.columns // 2
        if self.direct:
            self.moment(2 * input_values + self.values(channels))
            return
        self.moment(3 * input_values + self.values(channels))

    def grow(self, channels: int) -> None:
        """Double the pictures: a copy by frames, two larger ones, and the output with half the channels."""
        input_values = self.values(channels)
        self.rows, self.columns = 2 * self.rows, 2 * self.columns
        if self.direct:
            # The frames before they were doubled, at most; the larger ones, and the output.
            self.moment(input_values // 2 + self.values(channels) + self.values(channels) // 2)
            return
        self.moment(2 * input_values + 2 * self.values(channels) + self.values(channels) // 2)


def colors_bytes(frames: int, height: int, width: int) -> int:
    """Return the peak of matching a window's colours on a GPU (engine.media.color), with its pixels."""
    together = min(frames, max(1, _COLORED // (height * width)))
    # Roots; two tensors in which curves are computed, one of them with a row of ones.
    return 3 * frames * height * width * _EXACT + 10 * together * height * width * _EXACT


def text_bytes(config: Config, length: int, *, value: int) -> int:
    """Return the peak of encoding a prompt of `length` tokens (transformers' UMT5)."""
    heads, inner = config["num_heads"], config["num_heads"] * config["d_kv"]
    # Scores, their softmax in float32 and its cast; the position bias.
    attending = heads * length**2 * (2 * value + 2 * _EXACT) + 5 * length * inner * value
    forwarding = 3 * length * config["d_ff"] * value
    return int(max(attending, forwarding) + 3 * length * config["d_model"] * value)


def image_bytes(config: Config, *, value: int) -> int:
    """Return the peak of encoding a picture (transformers' CLIPVisionModel), whose layers' outputs are all kept."""
    dim, length = config["hidden_size"], (config["image_size"] // config["patch_size"]) ** 2 + 1
    states = (config["num_hidden_layers"] + 1) * length * dim * value
    pixels = 3 * config["image_size"] ** 2 * (2 * _EXACT + value)
    return int(states + pixels + length * (4 * dim + 2 * config["intermediate_size"]) * value)


def audio_bytes(config: Config, seconds: float, rate: int = 16_000, chunk: float = 10.0) -> int:
    """Return the peak of encoding one voice (engine.network.audio): convolutions by chunk, all layers' outputs."""
    samples = min(seconds, chunk) * rate
    first = samples / config["conv_stride"][0] * config["conv_dim"][0]
    frames = seconds * 25
    states = (config["num_hidden_layers"] * 2 + 1) * frames * config["hidden_size"]
    scores = config["num_attention_heads"] * frames**2
    return int((3 * first + states + 2 * scores + 3 * seconds * rate) * _EXACT)
