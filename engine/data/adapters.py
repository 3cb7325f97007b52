"""LoRAs: how a file matches a network, and those of a plan."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LoraFit:
    """How a LoRA's file matches a network."""

    file: str
    entries: int
    unmatched: tuple[str, ...]
    #: Description of the alphas of its pairs and of their source.
    alpha: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class LoraUse:
    """A LoRA that a request uses. A plan lists none if the weights are missing or not supported."""

    file: str
    scale: float
    #: Entries of the file, and the number of entries without a matching tensor in the network.
    entries: int
    unmatched: int
    #: Alpha and rank of its pairs with the source of the values, as text.
    alpha: str
