"""Overrides -> the entrypoint at work."""

from __future__ import annotations

from collections.abc import Sequence

from engine.registry import installed
from engine.service import EngineService


def launch(overrides: Sequence[str]) -> int:
    """Boot the engine with `overrides` and hand it to the entrypoint they name; return its exit status.

    A single run composes without hydra.main: the config is the same, our errors arrive as they are raised, and
    nothing is written beside the video.
    """
    service = EngineService(overrides)
    try:
        return installed().entrypoints.build(service.config.entrypoint).run(service)
    finally:
        service.close()
