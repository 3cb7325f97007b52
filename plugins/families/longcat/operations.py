"""How many operations one forward needs, in the terms of engine.planning: a multiplication and an addition are two."""

from __future__ import annotations

import math

from engine.planning.operations import Forward, Linear
from plugins.families.longcat.frames import FrameLayout
from plugins.families.longcat.sizes import Config, inner_width

_EXACT = 4


def block_linears(
    config: Config, layout: FrameLayout, rows: int, columns: int, *, voices: int, cached: bool
) -> tuple[Linear, ...]:
    """Return the linear layers of a block for frames of (rows, columns) latents, by their names in `layers`.

    `voices`: tracks, a bystanders' silent one included. `cached`: given frames are in a cache.
    """
    dim, time, frame = int(config["hidden_size"]), int(config["adaln_tembed_dim"]), _frame(config, rows, columns)
    every = (layout.noisy if cached else layout.total) * frame
    noisy, text = layout.noisy * frame, int(config["text_len"])
    heard = layout.noisy * voices * int(config["context_tokens"])
    # One time for all noisy frames; with given frames beside them, each frame's own.
    groups = 1 if cached or not layout.given else layout.total
    inner = inner_width(config)
    return (
        Linear("adaLN_modulation.1", groups, time, 6 * dim),
        Linear("audio_adaLN_modulation.1", 1 if groups == 1 else layout.noisy, time, 3 * dim),
        Linear("attn.qkv", every, dim, 3 * dim),
        Linear("attn.proj", every, dim, dim),
        Linear("cross_attn.q_linear", noisy, dim, dim),
        Linear("cross_attn.kv_linear", text, dim, 2 * dim),
        Linear("cross_attn.proj", noisy, dim, dim),
        Linear("audio_cross_attn.q_linear", noisy, dim, dim),
        Linear("audio_cross_attn.kv_linear", heard, int(config["output_dim"]), 2 * dim),
        Linear("audio_cross_attn.proj", noisy, dim, dim),
        Linear("ffn.w1", every, dim, inner),
        Linear("ffn.w3", every, dim, inner),
        Linear("ffn.w2", every, inner, dim),
    )


def attended_pairs(layout: FrameLayout, *, cached: bool) -> int:
    """Return how many pairs of frames (query, key) self-attention computes."""
    own = int(layout.reference)
    given = 0 if cached else own**2 + (layout.given - own) ** 2
    begin, end = layout.hiding
    return given + layout.noisy * layout.total - (end - begin)


def forward_work(
    config: Config,
    layout: FrameLayout,
    rows: int,
    columns: int,
    *,
    value: int,
    voices: int = 1,
    cached: bool = True,
    stream: int = _EXACT,
) -> Forward:
    """Return the work of one forward on frames of (rows, columns) latents, `value` bytes between the layers' parts.

    The arguments are those of `block_linears`; `stream`: bytes of a value of the residual stream. Three passes are
    three forwards.
    """
    dim, depth, frame = int(config["hidden_size"]), int(config["depth"]), _frame(config, rows, columns)
    cached = cached and layout.given > 0
    linears = block_linears(config, layout, rows, columns, voices=voices, cached=cached)
    every, noisy = (layout.noisy if cached else layout.total) * frame, layout.noisy * frame
    pairs = attended_pairs(layout, cached=cached) * frame**2
    pairs += noisy * (int(config["text_len"]) + voices * int(config["context_tokens"]))
    # The map: noisy tokens attend once more to those of the first frame.
    pairs += noisy * frame if voices > 1 else 0
    ends = math.prod(config["patch_size"]) * dim
    ends *= every * int(config["in_channels"]) + noisy * int(config["out_channels"])
    moved = depth * (_touched(config, every, noisy, layout.total * frame, value, stream, labelled=voices > 1))
    return Forward(depth * sum(layer.operations for layer in linears) + 2 * ends, 4 * depth * dim * pairs, moved)


def fill_work(config: Config, layout: FrameLayout, rows: int, columns: int) -> Forward:
    """Return the work of filling the cache of a window, once for all steps and passes."""
    dim, depth, frame = int(config["hidden_size"]), int(config["depth"]), _frame(config, rows, columns)
    given, own = layout.given * frame, int(layout.reference)
    each = 2 * given * dim * (4 * dim + 3 * inner_width(config)) + 2 * int(config["adaln_tembed_dim"]) * 6 * dim
    ends = 2 * given * math.prod(config["patch_size"]) * int(config["in_channels"]) * dim
    pairs = (own**2 + (layout.given - own) ** 2) * frame**2
    return Forward(depth * each + ends, 4 * depth * dim * pairs, 0)


def forward_bytes(
    config: Config,
    layout: FrameLayout,
    rows: int,
    columns: int,
    *,
    value: int,
    voices: int = 1,
    cached: bool = True,
    batch: int = 1,
    adapted: bool = False,
    expanded: bool = False,
    stream: int = _EXACT,
    device: str = "cuda",
) -> int:
    """Return the peak of temporary tensors of one forward, without weights, conditions and cache.

    `batch`: passes in one forward. `adapted`: attached LoRAs are switched on. `expanded`: weights are quantised. Other
    arguments as `forward_work`.
    """
    dim, frame = int(config["hidden_size"]), _frame(config, rows, columns)
    cached = cached and layout.given > 0
    every = batch * (layout.noisy if cached else layout.total) * frame * dim
    keys = batch * layout.total * frame * dim
    held, thin, exact = every * stream, every * value, every * _EXACT
    wide = batch * (layout.noisy if cached else layout.total) * frame * inner_width(config) * value
    # Bytes of a number of queries and keys before attention: on a CPU they are exact if two speak.
    precise = _EXACT if voices > 1 and device == "cpu" else value
    # Feed-forward: the block's tokens before and after attention, its input, and two inner tensors.
    # A product with quantised weights is there a second time, times the scales.
    forwarding = 2 * held + thin + (3 if expanded else 2) * wide
    # A LoRA beside a layer: the layer's output, the LoRA's, and that times its scale, or the sum. In the feed-forward
    # one inner tensor is there already; queries, keys and values are one output.
    adapting = max(2 * held + thin + 4 * wide, held + thin + 3 * 3 * thin) if adapted else 0
    # Self-attention holds the block's tokens, their norm, and queries, keys and values in one tensor.
    common = held + 4 * thin
    # While keys are normed: queries, a copy of the keys, and their norm before it is cast; a CPU also squares a copy.
    twice = device == "cpu" and value != _EXACT
    normalising = common + every * precise + thin + (2 * exact if twice else exact)
    normalising += thin if precise != _EXACT and not twice else 0
    # Cached keys and values are put before the others, in new tensors; then the one of all three is released.
    joined = every * precise + (keys - every) * precise * (precise != value)
    joining = common + (every + keys) * precise + max(keys * value, joined) if cached else 0
    own = held + thin + keys * value if cached else common
    # While keys are rotated: queries, keys, and where they are not exact a copy that is rotated, and its cast.
    rotating = own + every * precise + keys * precise
    rotating += keys * (_EXACT + precise) if precise != _EXACT else 0
    # Attention: queries, keys, its output, and the output of all groups of frames together.
    several = layout.hiding != (0, 0) or (layout.given > 0 and not cached)
    attending = own + thin + keys * value + (2 if several else 1) * thin
    # The norm of frames with different times.
    norming = 2 * held + 2 * exact + thin if layout.given and not cached else 0
    return max(forwarding, adapting, normalising, joining, rotating, attending, norming)


def _touched(config: Config, every: int, noisy: int, keys: int, value: int, stream: int, *, labelled: bool) -> int:
    """Return the bytes that a block's norms, rotations, sums and activations read and write.

    Counted in `layers` and `attention`: every operator reads its inputs and writes its output.
    """
    dim, inner = int(config["hidden_size"]), inner_width(config)
    head = dim // int(config["num_heads"])
    cast = 0 if value == _EXACT else _EXACT + value
    norm = (0 if stream == _EXACT else stream + _EXACT) + 2 * _EXACT + cast
    # A head's norm: the sum, the product with its scale, the product with the weight.
    headed = value + (value + _EXACT) + (_EXACT + value)
    turned = 2 * _EXACT + 2 * cast
    of_all = 2 * norm + 2 * headed + turned + 2 * (2 * stream + value)
    of_noisy = 3 * norm + 2 * headed + 2 * (2 * stream + value) + (turned if labelled else 0)
    tables = (every + keys) * head * _EXACT
    return int(every * dim * of_all + noisy * dim * of_noisy + keys * dim * turned + tables + 3 * every * inner * value)


def _frame(config: Config, rows: int, columns: int) -> int:
    """Return the tokens of a latent frame."""
    _, height, width = config["patch_size"]
    return int((rows // height) * (columns // width))
