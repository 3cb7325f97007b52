"""Starts the engine and runs the chosen entrypoint."""

from __future__ import annotations

import signal
from collections.abc import Sequence

from engine.imports.collection import own_process, uncollected
from engine.plugin.manager import installed
from engine.service import EngineService


def launch(overrides: Sequence[str]) -> int:
    """Start the engine with `overrides` and run the entrypoint that they choose; return its exit status.

    A single run does not use hydra.main: the config is the same, but errors keep their type, and no files are written
    except the video.
    """
    own_process()
    with uncollected():
        service = EngineService(overrides)
    try:
        with service.joined() as follower:
            if follower:
                return follow(service)
            return installed().entrypoints.build(service.config.entrypoint).run(service)
    finally:
        service.close()


def follow(service: EngineService) -> int:
    """Work for rank 0. Interrupts are ignored here: rank 0 gets them, too, and decides when to stop."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    return service.follow()
