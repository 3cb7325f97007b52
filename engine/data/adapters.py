"""What of a plan is about LoRAs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LoraUse:
    """A LoRA that is on for a request. A plan has none where the weights are not found, or are not suited."""

    file: str
    scale: float
    #: Entries of the file, and how many of them find no tensor in the network.
    entries: int
    unmatched: int
    #: Alpha and rank of its pairs and which source says so, in words.
    alpha: str
