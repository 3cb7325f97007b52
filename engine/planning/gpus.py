"""Named GPUs: memory and speed from their data sheets, and prices from a dated table."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Card:
    """One GPU, from its data sheet."""

    name: str
    #: The driver's names for it.
    driver: str
    #: As nvidia-smi shows it, in MiB.
    memory_mib: int
    #: Compute capability, (major, minor).
    capability: tuple[int, int]
    #: Dense tensor core rates with float32 accumulation, 10^12 operations per second.
    bf16_tflops: float
    tf32_tflops: float
    #: 10^9 bytes per second: its memory, and its link to the host in one direction.
    bandwidth_gb: float
    link_gb: float
    #: Share of `bf16_tflops` that attention=auto reaches: an assumption. RTX 4090: arXiv 2411.10958
    #: shows FlashAttention 2 near the whole rate. H100, H200: cuDNN in arXiv 2407.08608, figure 5.
    attention: float
    #: Per second, in the currency of `prices`.
    price: float
    #: Dense rates of products in 8 bits, 10^12 operations per second: int8 with 32-bit sums, float8 with float32 sums;
    #: 0: its tensor cores do not have them.
    int8_tops: float
    fp8_tflops: float
    #: 10^9 bytes of memory of the machines that are rented with it: the least that was observed, and what is listed;
    #: None: no source was found.
    host_gb: float | None = None
    host_listed_gb: float | None = None

    def speed_up(self, products: str) -> float:
        """Return how many times faster than in bfloat16 it multiplies in "int8" or "fp8"; 1 if it cannot, or for ""."""
        return ({"int8": self.int8_tops, "fp8": self.fp8_tflops}.get(products) or self.bf16_tflops) / self.bf16_tflops

    @property
    def memory(self) -> int:
        """Return its memory in bytes."""
        return self.memory_mib * 2**20

    @property
    def host_memory(self) -> int | None:
        """Return the least memory, in bytes, of a machine that is rented with it; None if unknown."""
        return None if self.host_gb is None else int(self.host_gb * 1e9)

    @property
    def host_listed(self) -> int | None:
        """Return the memory, in bytes, that is listed for such a machine; None if unknown."""
        return None if self.host_listed_gb is None else int(self.host_listed_gb * 1e9)


@dataclass(frozen=True)
class Prices:
    """Source of the prices."""

    currency: str
    what: str
    source: str
    #: YYYY-MM-DD.
    date: str


def cards() -> tuple[Card, ...]:
    """Return the known cards, by memory and price."""
    return tuple(Card(**{**card, "capability": tuple(card["capability"])}) for card in _table()["cards"])


def prices() -> Prices:
    """Return the source of the prices."""
    return Prices(**_table()["prices"])


def find_card(name: str) -> Card | None:
    """Return the card with that name (ours or the driver's); None if it is not in the table."""
    return next((card for card in cards() if name in (card.name, card.driver)), None)


def installed_cards(root: Path = Path("/proc/driver/nvidia/gpus")) -> tuple[str, ...]:
    """Return the driver's names of this machine's GPUs; none without a driver. Loads no library."""
    return tuple(_models(root))


def _models(root: Path) -> Iterator[str]:
    for path in sorted(root.glob("*/information")):
        try:
            lines = path.read_text("utf-8", "replace").splitlines()
        except OSError:
            continue
        yield from (line.partition(":")[2].strip() for line in lines if line.startswith("Model:"))


@cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads((files("engine.planning") / "gpus.json").read_text("utf-8"))
    return table
