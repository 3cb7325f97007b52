"""Seconds on a named GPU by a roofline model: operations and bytes at a share of the data sheet's rates.

`engine.planning.rates` has the shares: assumed ones, or what `multitalk bench device` measured. The host's work between
windows is measured on one processor; others are faster or slower. Not counted: reading the weights, decoding the media,
and savings by step caches.
"""

from __future__ import annotations

from engine.planning.gpus import Card
from engine.planning.operations import Forward
from engine.planning.rates import attention_share, rates_of

#: Bytes of a card's memory that matching the colours of a pixel moves, as the rehearsal counts it.
COLORS = 1250
#: Host seconds per pixel of a frame to encode it as H.264 with the default preset. Processor time on one thread of an
#: AMD EPYC with AVX-512, measured by `multitalk bench host`, 2026-11-30.
ENCODING = 7.5e-8


def forward_seconds(
    card: Card,
    work: Forward,
    *,
    moved_weights: int = 0,
    unpacked: int = 0,
    samples: float = 1,
    kernel: str = "auto",
) -> float:
    """Return the seconds of one forward of `samples` samples; weights are copied and expanded once for all of them.

    `moved_weights`: bytes copied from the host at the same time; the slower of the two counts. `unpacked`: values of
    quantised weights that are expanded to bfloat16 for each product. `kernel`: attention=NAME.
    """
    rate, shares = card.bf16_tflops * 1e12, rates_of(card)
    computing = (work.products - work.in_8_bits) / (rate * shares.products)
    computing += work.in_8_bits / (rate * card.speed_up(work.format) * shares.eight_bit)
    computing += work.attention / (rate * attention_share(card, shares, kernel))
    moving = (samples * work.moved + 5 * unpacked) / (card.bandwidth_gb * 1e9 * shares.bandwidth)
    computing = samples * computing + moving
    return max(computing, link_seconds(card, moved_weights))


def codec_seconds(card: Card, operations: int, *, bfloat16: bool = False) -> float:
    """Return the seconds of the autoencoder's convolutions, in float32 or in bfloat16."""
    if bfloat16:
        return operations / (card.bf16_tflops * 1e12 * rates_of(card).decoding)
    return operations / (card.tf32_tflops * 1e12 * rates_of(card).convolutions)


def link_seconds(card: Card, moved: int) -> float:
    """Return the seconds to copy `moved` bytes from or to the host."""
    return moved / (card.link_gb * 1e9 * rates_of(card).link)


def colors_seconds(card: Card, pixels: int) -> float:
    """Return the seconds to match the colours of frames with so many pixels in total."""
    return pixels * COLORS / (card.bandwidth_gb * 1e9 * rates_of(card).bandwidth)


def host_seconds(pixels: int) -> float:
    """Return the host's seconds to encode frames with so many pixels in total."""
    return pixels * ENCODING
