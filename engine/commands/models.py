"""`multitalk models`: the weights on this machine or volume."""

from __future__ import annotations

from collections.abc import Sequence


def models(words: Sequence[str]) -> int:
    """Pull, verify, list or prune published weights. Raises EngineError."""
    # Not where this module is loaded: the hub's library is no part of a quick start.
    from engine.models.command import run

    return run(words, "multitalk models")
