"""The counts of a stage, and of a forward of the network."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple


class Copy(NamedTuple):
    """A kind of copy between host and device."""

    #: "up" is from the host to the device.
    direction: str
    #: "pinned" or "pageable": the memory on the host.
    memory: str
    #: Whether the host waits until it is done.
    blocks: bool
    #: Whether it happens inside a forward of the network.
    forward: bool
    where: str


@dataclass
class Counts:
    """The counts of one stage."""

    #: On the device: peak bytes, where, and the peak that the caching allocator reserved.
    peak: int = 0
    peak_where: str = ""
    held: int = 0
    #: Peak bytes on the device before the stage's component was there and after the previous one was gone.
    arrival: int = 0
    #: Bytes on the device when the stage ended, and those of large tensors by the place where they were created.
    after: int = 0
    left: Counter[str] = field(default_factory=Counter)
    host_peak: int = 0
    #: Newly pinned bytes, as requested.
    pinned: int = 0
    #: Copies and their bytes.
    copies: Counter[Copy] = field(default_factory=Counter)
    copied: Counter[Copy] = field(default_factory=Counter)
    #: Waits of the host for the device, and values of the device that the host reads, by place; inside forwards only
    #: and in total.
    waits: Counter[str] = field(default_factory=Counter)
    reads: Counter[str] = field(default_factory=Counter)
    forward_waits: Counter[str] = field(default_factory=Counter)
    #: Kernels launched, by operator, and the bytes that each operator reads and writes.
    launches: Counter[str] = field(default_factory=Counter)
    moved: Counter[str] = field(default_factory=Counter)
    #: Operations of products, convolutions and attention, by operator and dtype of its inputs.
    flops: Counter[tuple[str, str]] = field(default_factory=Counter)
    #: Attention: kernel, shape of queries and keys, dtype.
    attention: Counter[tuple[str, str, str]] = field(default_factory=Counter)


class ForwardCounts(NamedTuple):
    """The counts of one forward of the network."""

    launches: int
    moved: int
    flops: int
    #: Copies between host and device, and their bytes in each direction.
    copies: int
    up: int
    down: int
    waits: int
    reads: int
    #: Operations of linear layers, and how many of them multiply in 8 bits.
    linear: int = 0
    linear_8_bits: int = 0
