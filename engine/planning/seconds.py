"""Seconds on a named GPU by a roofline model: operations and bytes at a stated share of the data sheet's rates.

The shares are assumptions: nothing has run on a GPU, and they are round numbers of commonly reported results for large
bfloat16 matrix products and FlashAttention 2. `multitalk bench device` measures them. The host's work between windows
is measured on one processor; others are faster or slower. Not counted: reading the weights, decoding the media, and
savings by step caches.
"""

from __future__ import annotations

from engine.planning.gpus import Card
from engine.planning.operations import Forward

#: Share of the card's dense rate, in bfloat16 and in 8 bits, for matrix products with thousands of rows.
PRODUCTS = 0.6
#: Share of the card's TF32 rate, for the autoencoder's float32 convolutions.
CONVOLUTIONS = 0.3
#: Share of the card's memory bandwidth.
BANDWIDTH = 0.8
#: Share of the link's rate: weights are pinned once, when they are loaded.
LINK = 0.8
#: Share of the card's bfloat16 rate when the autoencoder decodes in it: 1.7 times as fast as in float32 (TF32), as the
#: public comparison of Wan's autoencoder on an H100 reports (HeyGen: 14.5 s and 8.4 s). Norms and copies bound it, too.
DECODING = 0.25
#: Bytes of a card's memory that matching the colours of a pixel moves, as the rehearsal counts it.
COLORS = 1250
#: Host seconds per pixel of a frame to encode it as H.264 with the default preset. Processor time on one thread of an
#: AMD EPYC with AVX-512, measured by `multitalk bench host`, 2026-11-30.
ENCODING = 7.5e-8


def forward_seconds(
    card: Card, work: Forward, *, moved_weights: int = 0, unpacked: int = 0, samples: float = 1
) -> float:
    """Return the seconds of one forward of `samples` samples; weights are copied and expanded once for all of them.

    `moved_weights`: bytes copied from the host at the same time; the slower of the two counts. `unpacked`: values of
    quantised weights that are expanded to bfloat16 for each product.
    """
    rate = card.bf16_tflops * 1e12
    products = work.products - work.in_8_bits + work.in_8_bits / card.speed_up(work.format)
    computing = samples * (products / (rate * PRODUCTS) + work.attention / (rate * card.attention))
    computing += (samples * work.moved + 5 * unpacked) / (card.bandwidth_gb * 1e9 * BANDWIDTH)
    return max(computing, link_seconds(card, moved_weights))


def codec_seconds(card: Card, operations: int, *, bfloat16: bool = False) -> float:
    """Return the seconds of the autoencoder's convolutions, in float32 or in bfloat16."""
    if bfloat16:
        return operations / (card.bf16_tflops * 1e12 * DECODING)
    return operations / (card.tf32_tflops * 1e12 * CONVOLUTIONS)


def link_seconds(card: Card, moved: int) -> float:
    """Return the seconds to copy `moved` bytes from or to the host."""
    return moved / (card.link_gb * 1e9 * LINK)


def colors_seconds(card: Card, pixels: int) -> float:
    """Return the seconds to match the colours of frames with so many pixels in total."""
    return pixels * COLORS / (card.bandwidth_gb * 1e9 * BANDWIDTH)


def host_seconds(pixels: int) -> float:
    """Return the host's seconds to encode frames with so many pixels in total."""
    return pixels * ENCODING
