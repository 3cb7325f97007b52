"""Opens a studio: its backend, its history and its server, until it is stopped."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from engine.serving.studio.backend import Backend
from engine.serving.studio.history import History
from engine.serving.studio.studio import Studio
from engine.serving.studio.web import Serving, served


def run_studio(
    backend: Backend,
    history: Path,
    serving: Serving,
    read_recipe: Callable[[Path], Mapping[str, Any]],
    *,
    opened: Callable[[str], None],
) -> None:
    """Serve a studio until SIGINT or SIGTERM; `opened` gets its address.

    `read_recipe` returns the provenance of a video file, and raises EngineError. Raises ConfigError.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("multitalk: %(message)s"))
    log = logging.getLogger("engine.serving.studio")
    log.addHandler(handler)
    studio = Studio(backend, History(history))
    try:
        asyncio.run(_serve(studio, serving, read_recipe, opened))
    finally:
        studio.close()
        log.removeHandler(handler)


async def _serve(
    studio: Studio,
    serving: Serving,
    read_recipe: Callable[[Path], Mapping[str, Any]],
    opened: Callable[[str], None],
) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with served(studio, serving, read_recipe) as url:
        opened(url)
        sys.stdout.flush()
        await stop.wait()
