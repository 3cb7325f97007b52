"""The maximum cost of one request."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Budget:
    """The maximum cost of one request, checked against the composed config and the plan before any work.

    The defaults apply unless a worker sets lower limits.
    """

    #: Maximum frames of the finished video if the request sets their number.
    frames: int = 90_000
    #: Maximum seconds of the finished video if it is as long as the voices.
    seconds: float = 3600.0
    #: Maximum steps of the sampler.
    steps: int = 1000
    #: Maximum forwards of the network: windows x evaluations x guidance passes, with at least one evaluation per step.
    forwards: int = 1_000_000
