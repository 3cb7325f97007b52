"""The one service that stays loaded: warmed up before the first job, stepped down when memory runs out."""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Mapping
from typing import Literal

from engine.components import CancelToken, Service
from engine.errors import Cancelled, EngineError

_LOG = logging.getLogger(__name__)

#: What is tried after a profile whose device was too small. What text-offload saves is seldom what was lacking.
LOWER = {
    "none": "model-offload",
    "text-offload": "model-offload",
    "model-offload": "group-offload",
    "group-offload": "lowest",
}
#: Seconds between two looks at a cancel token.
_LOOK = 0.05

State = Literal["cold", "loading", "ready", "unhealthy"]


class Keeper:
    """Holds the worker's service. Only the thread of a job calls `ready`, `lower` and `note`."""

    def __init__(self, service: Service) -> None:
        """Load nothing yet."""
        self.service = service
        self.capabilities = service.capabilities()
        self.state: State = "cold"
        #: Why the weights could not be loaded.
        self.failure: BaseException | None = None
        #: Seconds of each part of the load.
        self.seconds: Mapping[str, float] = {}
        self._warmed = threading.Event()
        self._warmed.set()

    @property
    def memory(self) -> str:
        """The memory profile that is in use."""
        return str(self.capabilities.get("memory", ""))

    @property
    def warming(self) -> bool:
        """Whether the weights are being loaded right now."""
        return not self._warmed.is_set()

    def warm(self) -> None:
        """Load the weights in the background: a worker waits for its first job anyway."""
        self.state = "loading"
        self._warmed.clear()
        # A daemon: a worker that is told to end does not finish reading 20 GB first.
        threading.Thread(target=self._load, name="multitalk-warm-up", daemon=True).start()

    def ready(self, cancel: CancelToken) -> Service:
        """Wait for the warm-up and return the service; it tries again by itself what failed. Raises Cancelled."""
        while not self._warmed.wait(_LOOK):
            if cancel.is_set():
                raise Cancelled("load")
        return self.service

    def note(self) -> None:
        """Note that the service has made a video, whatever came before."""
        if self.state != "ready":
            self._ready()
        self.failure = None

    def lower(self) -> str | None:
        """Replace the service by one with the next lower memory profile; return its name, None below the lowest."""
        name = LOWER.get(self.memory)
        if name is None:
            return None
        stay = ("memory.resident=0",) if name in ("group-offload", "lowest") else ()
        smaller = self.service.open([f"memory={name}", *stay])
        self.service.close()
        # What the failed generation held lies in frames of its traceback until they are collected.
        gc.collect()
        self.service, self.capabilities = smaller, smaller.capabilities()
        _LOG.warning("the device's memory ran out: memory=%s from now on", name)
        return name

    def close(self) -> None:
        """Release weights and device."""
        self.service.close()

    def _ready(self) -> None:
        # What memory=auto is shows once the weights are there.
        self.state, self.capabilities = "ready", self.service.capabilities()

    def _load(self) -> None:
        began = time.monotonic()
        try:
            self.seconds = self.service.load()
            self._ready()
            _LOG.info("loaded in %.1f s", time.monotonic() - began)
        except EngineError as error:
            self.state, self.failure = "unhealthy", error
            _LOG.error("the weights cannot be loaded: %s", error)
        except BaseException as error:  # noqa: BLE001 - the next job meets it again and answers it
            self.state, self.failure = "unhealthy", error
            _LOG.exception("the warm-up failed")
        finally:
            self._warmed.set()
