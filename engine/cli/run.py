"""Overrides -> the entrypoint at work."""

from __future__ import annotations

import signal
from collections.abc import Sequence

from engine.plugin.manager import installed
from engine.service import EngineService


def launch(overrides: Sequence[str]) -> int:
    """Boot the engine with `overrides` and hand it to the entrypoint they name; return its exit status.

    A single run composes without hydra.main: the config is the same, our errors arrive as they are raised, and
    nothing is written beside the video.
    """
    service = EngineService(overrides)
    try:
        with service.joined() as follower:
            if follower:
                return follow(service)
            return installed().entrypoints.build(service.config.entrypoint).run(service)
    finally:
        service.close()


def follow(service: EngineService) -> int:
    """Work for the process that leads. Interrupts are its to answer: it gets them, too, and says when to stop."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    return service.follow()
