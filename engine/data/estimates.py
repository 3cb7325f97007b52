"""The estimates of a plan: memory by stage, operations, and seconds and cost on known GPUs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class StageMemory:
    """The peak memory of one stage, in bytes."""

    #: "load", "audio", "text", "vae encode", "image", "denoise", "vae decode", "colors" or "write".
    stage: str
    #: Weights in memory, by component, and temporary tensors.
    weights: Mapping[str, int]
    temporaries: int
    #: "cuda" if the stage runs on the device, else "cpu": the memory is the host's.
    device: str
    #: Memory that libraries may use on a device in addition to tensors: an assumption; rehearsals do not include it.
    workspace: int = 0

    @property
    def tensors(self) -> int:
        """Return the bytes of all tensors."""
        return sum(self.weights.values()) + self.temporaries

    @property
    def total(self) -> int:
        """Return the bytes of tensors and workspace."""
        return self.tensors + self.workspace


@dataclass(frozen=True)
class CardEstimate:
    """The estimates of a plan on one GPU."""

    card: str
    memory_bytes: int
    #: Memory that the plan needs on it, including CUDA's own.
    needed_bytes: int
    fits: bool
    #: Host memory that the plan needs, in addition to that of a process with all imports.
    host_needed_bytes: int
    #: Minimum host memory of rented machines with such a card, and the listed memory of one; None: not known.
    host_memory_bytes: int | None
    host_listed_bytes: int | None
    #: Whether the plan fits such a machine with the minimum memory; None: not known.
    fits_host: bool | None
    #: Seconds of one forward, of one step, of the longest window from its inputs to its finished frames, and of all
    #: windows, with loaded weights; they depend on assumptions, see docs/plan.md.
    forward_seconds: float
    step_seconds: float
    window_seconds: float
    seconds: float
    #: Cost of those seconds, by the price table, and of a second of the finished video.
    cost: float
    cost_of_second: float
    #: Shares of the card's data sheet that were measured (engine/planning/rates.py), and where; empty: all are assumed.
    measured: tuple[str, ...] = ()
    measured_where: str = ""
    #: Overrides with which it fits, found by planning them; empty if it fits or if no tried override helps.
    change: tuple[str, ...] = ()
    #: The profile that memory=auto would select there, used for these figures; empty if the config names a profile.
    picked: str = ""
    #: Whether the guidance passes of an evaluation are one forward of a batch in these figures.
    batched: bool = False
    #: Seconds of all windows if each is made again as often as `retake.max` allows; None: none is.
    most_seconds: float | None = None


@dataclass(frozen=True)
class Estimates:
    """The needs of a plan, calculated from configs only: without weights and without a GPU."""

    #: The device on this machine, "cuda" or "cpu", its dtype, and the GPU's name if it is a known one.
    device: str
    dtype: str
    card: str | None
    #: On this machine: peak memory of the device (None on a CPU) and of the host, in addition to the imports.
    device_memory_bytes: int | None
    host_memory_bytes: int
    #: On this machine's GPU; None if it is not a known one.
    seconds: float | None
    cost: float | None
    #: Parameters of each component, and bytes of its weights in memory.
    parameters: Mapping[str, int]
    weights: Mapping[str, int]
    #: On this machine, in the order of the generation.
    stages: tuple[StageMemory, ...]
    #: Floating-point operations of one forward, and of the whole video including the autoencoder.
    forward_flops: int
    flops: int
    #: Share of a forward's matrix products that run in 8 bits, at the card's rate for them.
    products_in_8_bits: float
    #: Bytes of weights that are read at the start: sizes of the files, or published sizes if the files are missing.
    start_bytes: int
    cards: tuple[CardEstimate, ...]
    #: Source and date of the prices.
    prices: str
    #: As `CardEstimate.picked`, on this machine.
    picked: str = ""
