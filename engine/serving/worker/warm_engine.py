"""The service that stays loaded: loaded before the first job, with less memory use after an out-of-memory error."""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Literal

from engine.components import CancelToken, Service
from engine.errors import Cancelled, EngineError

_LOG = logging.getLogger(__name__)

#: Memory profile -> the next one to try when memory runs out. text-offload rarely saves enough, so it is skipped.
LOWER = {
    "none": "model-offload",
    "text-offload": "model-offload",
    "model-offload": "group-offload",
    "group-offload": "lowest",
}
#: Seconds between two checks of a cancel token.
_POLL = 0.05

State = Literal["cold", "loading", "ready", "unhealthy"]


class WarmEngine:
    """Holds the worker's service. Only a job's thread calls `wait_until_ready`, `lower_memory` and `mark_ready`."""

    def __init__(self, service: Service, first: Callable[[Service], None] | None = None) -> None:
        """Does not load the weights yet. `first` uses the loaded service before it is ready for jobs."""
        self.service = service
        self._first = first
        self.capabilities = service.capabilities()
        self.state: State = "cold"
        #: The error that loading the weights raised.
        self.error: BaseException | None = None
        #: Seconds of each part of the load.
        self.seconds: Mapping[str, float] = {}
        self._warmed = threading.Event()
        self._warmed.set()

    @property
    def memory(self) -> str:
        """Name of the current memory profile."""
        return str(self.capabilities.get("memory", ""))

    @property
    def warming(self) -> bool:
        """Whether the weights are being loaded now."""
        return not self._warmed.is_set()

    def warm(self) -> None:
        """Load the weights in a background thread, while the worker waits for its first job."""
        self.state = "loading"
        self._warmed.clear()
        # A daemon thread: a worker that is stopped must not read 20 GB to the end first.
        threading.Thread(target=self._load, name="multitalk-warm-up", daemon=True).start()

    def wait_until_ready(self, cancel: CancelToken) -> Service:
        """Wait for the warm-up and return the service, which retries a failed load itself. Raises Cancelled."""
        while not self._warmed.wait(_POLL):
            if cancel.is_set():
                raise Cancelled("load")
        return self.service

    def mark_ready(self) -> None:
        """Note that the service has made a video, so it works even if the warm-up failed."""
        if self.state != "ready":
            self._ready()
        self.error = None

    def lower_memory(self) -> str | None:
        """Replace the service by one with the next lower memory profile; return its name, None if there is none."""
        name = LOWER.get(self.memory)
        # Other processes of the same video keep their weights as they are.
        if name is None or self.capabilities.get("parallel", "none") != "none":
            return None
        options = ("memory.resident=0",) if name in ("group-offload", "lowest") else ()
        smaller = self.service.open([f"memory={name}", *options])
        self.service.close()
        # Frames of the failed generation's traceback hold its tensors until they are collected.
        gc.collect()
        self.service, self.capabilities = smaller, smaller.capabilities()
        _LOG.warning("the device's memory ran out: memory=%s from now on", name)
        return name

    def close(self) -> None:
        """Release weights and device."""
        self.service.close()

    def _ready(self) -> None:
        # memory=auto is resolved when the weights are loaded.
        self.state, self.capabilities = "ready", self.service.capabilities()

    def _warm_up(self) -> None:
        if self._first is None:
            return
        began = time.monotonic()
        try:
            self._first(self.service)
        except Exception as error:  # noqa: BLE001 - the weights are loaded, and a job may need less than this
            reason = str(error) if isinstance(error, EngineError) else type(error).__name__
            _LOG.warning("the warm-up videos failed; the worker takes jobs without them: %s", reason)
        seconds = time.monotonic() - began
        self.seconds = {**self.seconds, "warm_up": seconds}
        _LOG.info("warmed up in %.1f s", seconds)

    def _load(self) -> None:
        began = time.monotonic()
        try:
            self.seconds = self.service.load()
            _LOG.info("loaded in %.1f s", time.monotonic() - began)
            self._warm_up()
            self._ready()
        except EngineError as error:
            self.state, self.error = "unhealthy", error
            _LOG.error("the weights cannot be loaded: %s", error)
        except BaseException as error:  # noqa: BLE001 - the next job raises it again and answers it
            self.state, self.error = "unhealthy", error
            _LOG.exception("the warm-up failed")
        finally:
            self._warmed.set()
