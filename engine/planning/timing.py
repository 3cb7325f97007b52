"""How long a plan takes on a named GPU: of one forward, one step, one window, and in total."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from engine.data import Plan, Window
from engine.machine.profiles import STREAMED
from engine.planning import seconds
from engine.planning.activations import tiles
from engine.planning.gpus import Card
from engine.planning.memory import WIDTHS, Load
from engine.planning.network import Section, costs_of
from engine.planning.operations import codec_work
from engine.planning.parameters import Sizes, scales


class Times(NamedTuple):
    """Seconds with loaded weights: the longest forward, step and window (with its encoding), and all windows."""

    forward: float
    step: float
    window: float
    total: float


def times(card: Card, plan: Plan, sizes: Sizes, load: Load, weights: Mapping[str, int]) -> Times:
    """Return the seconds of `plan` on `card`, with `weights` (bytes by component) kept as `load` says."""
    # On average: a sampler may make several evaluations in a step, and guidance may be in some steps only.
    each = plan.forwards / (len(plan.windows) * plan.steps)
    samples = plan.forwards / (len(plan.windows) * (plan.evaluations or plan.steps)) if load.batched else 1
    forward_of = _forwards(card, plan, sizes, load, samples)
    width, height = plan.canvas.target
    forwards, windows = [], []
    # Seconds until the host has encoded the frames of the window before, after the card has made them.
    encoding = 0.0
    for window in plan.windows:
        forward = forward_of(window)
        coded, decoded = codec_operations(plan, sizes, window, load.tile)
        took = plan.steps * each * forward + seconds.codec_seconds(card, coded)
        took += seconds.codec_seconds(card, decoded, bfloat16=load.decoded == 2)
        took += seconds.colors_seconds(card, width * height * (window.keep + window.motion))
        # The new frames are copied to the host as bytes; those that the next window continues there and back.
        pictures = 3 * width * height * (window.keep + 2 * 4 * window.motion)
        took += seconds.link_seconds(card, _brought_each(sizes, load, weights) + pictures)
        # The host encodes frames while the card makes the next window.
        took = max(took, encoding)
        encoding = seconds.host_seconds(width * height * window.keep)
        forwards.append(forward)
        windows.append(took)
    total = seconds.link_seconds(card, _brought_once(load, weights)) + sum(windows) + encoding
    return Times(max(forwards), each * max(forwards), max(windows) + encoding, total)


def _forwards(card: Card, plan: Plan, sizes: Sizes, load: Load, samples: float) -> Callable[[Window], float]:
    """Return a function that returns the seconds of one forward of a window, its part of `samples` in a batch."""
    costs = costs_of(sizes)
    streamed = max(0, costs.layers - int(load.resident))
    blocks = (sizes.block * streamed).bytes(2, load.kept)
    moved = blocks if load.memory in STREAMED else 0
    unpacked = sizes.counts["transformer"].linear if load.quant != "none" and load.multiplied is None else 0

    def of(window: Window) -> float:
        latents = latents_of(sizes, window.frames, plan.canvas.target)
        work = costs.forward_work(
            Section(latents, len(plan.seats), window.motion),
            value=2,
            multiplied=load.multiplied,
            compiled=load.compiled,
            fused=load.fused,
            stream=WIDTHS[load.residual_dtype],
        )
        took = seconds.forward_seconds(
            card, work, moved_weights=moved, unpacked=unpacked, samples=samples, kernel=load.attention
        )
        return took / samples

    return of


def latents_of(sizes: Sizes, frames: int, size: tuple[int, int]) -> tuple[int, int, int]:
    """Return the latents (T, h, w) of a window of `frames` at `size` (width, height)."""
    spatial, temporal = scales(sizes.configs["vae"])
    return 1 + (frames - 1) // temporal, size[1] // spatial, size[0] // spatial


def codec_operations(plan: Plan, sizes: Sizes, window: Window, tile: int = 0) -> tuple[int, int]:
    """Return the autoencoder's operations to encode and to decode a window, in tiles of `tile` pixels (0: whole)."""
    width, height = plan.canvas.target
    # Tiles overlap.
    rows, columns = map(sum, tiles(height, width, tile))
    encoding, decoding = (
        codec_work(sizes.configs["vae"], side, window.frames, rows, columns) for side in ("encoder", "decoder")
    )
    return encoding, decoding


def _brought_once(load: Load, weights: Mapping[str, int]) -> int:
    """Return the bytes of weights that a request copies to the device before its windows."""
    return 0 if load.memory == "none" else weights["text_encoder"]


def _brought_each(sizes: Sizes, load: Load, weights: Mapping[str, int]) -> int:
    """Return the bytes of weights that are copied to the device for each window, without streamed blocks.

    The autoencoder is copied twice, to encode and to decode. Nothing is copied back.
    """
    if load.memory in ("none", "text-offload"):
        return 0
    small = 2 * weights["vae"] + weights["image_encoder"]
    return small + (weights["transformer"] if load.memory == "model-offload" else sizes.root.bytes(2))
