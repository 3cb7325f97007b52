"""Hooks: a white corner in every frame, and a line in the log for each video."""

from __future__ import annotations

import logging

from engine import Delivery, Progress, Request, hookimpl
from engine.data import Frames, Window

logger = logging.getLogger(__name__)


@hookimpl
def step_finished(request: Request, progress: Progress) -> None:
    """Say how far it is."""
    logger.debug("seed %s: step %s of %s", request.seed, progress.step, progress.steps)


@hookimpl
def window_finished(window: Window, frames: Frames) -> None:
    """Whiten eight by eight pixels; hooks may leave out arguments that they do not need."""
    frames.pictures[:, :8, :8] = 255
    logger.info("window %s is stamped", window.index)


@hookimpl
def generation_finished(delivery: Delivery) -> None:
    """Say what was made."""
    logger.info("%s frames", delivery.frames)
