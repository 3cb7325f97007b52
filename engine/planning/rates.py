"""Which share of a card's data sheet the engine's kernels reach: measured where a report is kept, else assumed.

The assumed shares are round numbers of commonly reported results for large matrix products and fused attention.
`multitalk bench device --keep` measures a card, and keeps its shares in the folder `measured` beside this file. Plans
for that card then use them, and say so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from engine.planning.gpus import Card

#: Folder of measured shares, one file per card.
FOLDER = "measured"


@dataclass(frozen=True)
class Rates:
    """Shares, each between 0 and 1 of a rate of the data sheet."""

    #: Of the dense bfloat16 rate: matrix products with thousands of rows, and fused attention with attention=auto.
    products: float
    attention: float
    #: Of the dense rate in 8 bits: matrix products in them.
    eight_bit: float
    #: Of the TF32 rate: the autoencoder's float32 convolutions; of the bfloat16 rate: decoding in it.
    convolutions: float
    decoding: float
    #: Of the bandwidth: of the card's memory, and of the link to the host (weights are pinned when they are loaded).
    bandwidth: float
    link: float
    #: Names of the shares above that were measured, in their order.
    measured: tuple[str, ...] = ()
    #: Where they were measured: date and versions. Empty if none was.
    source: str = ""


NAMES = tuple(field.name for field in fields(Rates) if field.name not in ("measured", "source"))


def assumed(card: Card) -> Rates:
    """Return the shares that are assumed for `card`."""
    return Rates(
        products=0.6,
        attention=card.attention,
        eight_bit=0.6,
        convolutions=0.3,
        # 1.7 times as fast as TF32, as a public comparison of Wan's autoencoder on an H100 reports (HeyGen: 14.5 and
        # 8.4 s). Norms and copies bound it, too.
        decoding=0.25,
        bandwidth=0.8,
        link=0.8,
    )


#: Kernels of attention that are slower or faster than what attention=auto picks, by the card's compute capability.
#: FlashAttention 2 reaches 35 to 40 % of a Hopper card, FlashAttention 3 is 1.5 to 2 times as fast, up to 75 % (arXiv
#: 2407.08608). SageAttention 2 is 2 to 3 times as fast as FlashAttention 2 on Ada (arXiv 2411.10958).
_FLASH_2_ON_HOPPER = 0.4
_SAGE_ON_ADA = 2.0


def attention_share(card: Card, shares: Rates, kernel: str) -> float:
    """Return the share of the bfloat16 rate that self-attention reaches with attention=`kernel`."""
    if card.capability[0] == 9 and kernel in ("flash", "flash-hub", "flash-varlen", "flash-varlen-hub", "sdpa-flash"):
        return min(_FLASH_2_ON_HOPPER, shares.attention)
    if card.capability == (8, 9) and kernel.startswith("sage"):
        return _SAGE_ON_ADA * shares.attention
    return shares.attention


def rates_of(card: Card) -> Rates:
    """Return the shares for `card`: the measured ones, and what is assumed of the others."""
    kept = _kept(folder()).get(card.driver)
    if kept is None:
        return assumed(card)
    shares = {name: float(kept["shares"][name]) for name in NAMES if name in kept["shares"]}
    return replace(assumed(card), **shares, measured=tuple(shares), source=f"{kept['date']}, {kept['versions']}")


def folder() -> Path:
    """Return the folder of measured shares, which is in the package."""
    return Path(str(files("engine.planning"))) / FOLDER


def file_of(driver: str) -> str:
    """Return the name of the file for a card with that driver's name."""
    return re.sub(r"[^a-z0-9]+", "-", driver.lower()).strip("-") + ".json"


@cache
def _kept(path: Path) -> Mapping[str, Mapping[str, Any]]:
    """Return the kept shares by the driver's name of the card."""
    reports = [json.loads(file.read_text("utf-8")) for file in sorted(path.glob("*.json"))]
    return {report["driver"]: report for report in reports}
