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


#: By name, where self-attention is slower or faster than with attention=auto. Hopper, in 10^12 operations per second on
#: an H100 (heads of 128, 16 thousand tokens, arXiv 2407.08608, figure 5): FlashAttention 2 reaches 370, cuDNN, which
#: torch takes, 595, and FlashAttention 3 648. Ada: SageAttention 2 is 2 to 3 times as fast as FlashAttention 2
#: (arXiv 2411.10958).
_ON_HOPPER = {"flash": 370 / 595, "sdpa-flash": 370 / 595, "flash3": 648 / 595}
_SAGE_ON_ADA = 2.0


def attention_share(card: Card, shares: Rates, kernel: str) -> float:
    """Return the share of the bfloat16 rate that self-attention reaches with attention=`kernel`."""
    if card.capability[0] == 9:
        return shares.attention * _ON_HOPPER.get(kernel.removesuffix("-hub").removesuffix("-varlen"), 1.0)
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
