"""What one request may cost at most."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Budget:
    """The most that one request may cost, held against the composed config and the plan before any work.

    The defaults are those of an engine that no worker has narrowed.
    """

    #: Frames of the finished video where the request gives their number.
    frames: int = 90_000
    #: Seconds of the finished video where it is as long as the voices.
    seconds: float = 3600.0
    #: Steps of the sampler.
    steps: int = 1000
    #: Forwards of the network in all: windows x evaluations x guidance passes, one evaluation a step or more.
    forwards: int = 1_000_000
