"""What a plan needs: memory by stage, work, and seconds and cost on named GPUs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class StageMemory:
    """What one stage needs at its worst moment, in bytes."""

    #: "load", "audio", "text", "vae encode", "image", "denoise", "vae decode" or "colors".
    stage: str
    #: Weights that are there, by component, and temporary tensors.
    weights: Mapping[str, int]
    temporaries: int
    #: On the device ("cuda"), where the stage runs there; else on the host.
    device: str
    #: What libraries may take on a device beside tensors; an assumption, and no part of a rehearsal.
    workspace: int = 0

    @property
    def tensors(self) -> int:
        """Return the bytes of all tensors."""
        return sum(self.weights.values()) + self.temporaries

    @property
    def total(self) -> int:
        """Return the bytes of all."""
        return self.tensors + self.workspace


@dataclass(frozen=True)
class CardEstimate:
    """What the plan comes to on one GPU."""

    card: str
    memory_bytes: int
    #: What the plan needs of it, with CUDA's own share.
    needed_bytes: int
    fits: bool
    #: What the plan needs of the machine's own memory, above what the process holds once everything is imported.
    host_needed_bytes: int
    #: The least memory of a machine that is rented with such a card, and what is listed for one; None: not known.
    host_memory_bytes: int | None
    host_listed_bytes: int | None
    #: Whether it fits the least of such machines; None: not known.
    fits_host: bool | None
    #: Seconds of one step and of all windows, while the weights are loaded; an assumption's worth, see docs/plan.md.
    step_seconds: float
    seconds: float
    #: Of those seconds, by the price table.
    cost: float
    #: Overrides with which it fits, found by planning them; empty where it fits or none of those tried helps.
    change: tuple[str, ...] = ()
    #: The profile that memory=auto would pick there, whose figures these are; empty where one was named.
    picked: str = ""


@dataclass(frozen=True)
class Estimates:
    """What a plan needs, found from configs alone: neither weights nor a GPU are looked at."""

    #: Where it would run here, "cuda" or "cpu", in which dtype, and the GPU's name if it is a known one.
    device: str
    dtype: str
    card: str | None
    #: On this machine: peak of the device (None on a CPU, where all is the host's) and of the host above its imports.
    device_memory_bytes: int | None
    host_memory_bytes: int
    #: On this machine's GPU; None where that is none of the known ones.
    seconds: float | None
    cost: float | None
    #: Parameters of each component, and bytes of its weights as they are kept in memory.
    parameters: Mapping[str, int]
    weights: Mapping[str, int]
    #: On this machine, in the order of the walk.
    stages: tuple[StageMemory, ...]
    #: Floating-point operations of one forward and of the whole video, autoencoder included.
    forward_flops: int
    flops: int
    #: Bytes of weights that are read at the start: the files', or the published sizes where there are none yet.
    start_bytes: int
    cards: tuple[CardEstimate, ...]
    #: Where the prices come from, and of which day.
    prices: str
    #: As of a card, on this machine.
    picked: str = ""
