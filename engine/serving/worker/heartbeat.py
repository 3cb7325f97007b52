"""The SDK's heartbeat, started before anything touches the device."""

from __future__ import annotations

import multiprocessing
import os
from typing import Any


def start() -> Any:
    """Start the SDK's process of pings and return its mirror of the running jobs' ids.

    The SDK itself would fork it after the fitness checks, one of which initialises CUDA; and a worker that first reads
    its weights would seem dead for so long. Off the platform nothing is started.
    """
    from runpod.serverless.modules.worker_state import PingJobMirror
    from runpod.serverless.worker import heartbeat

    class Mirror(PingJobMirror):  # type: ignore[misc]
        """Ends the pings with the worker: a failed fitness check leaves no time to do it."""

        parent = os.getpid()

        def get(self) -> str | None:
            # Called before each ping, in its process.
            if os.getppid() != self.parent:
                os._exit(0)
            found: str | None = super().get()
            return found

    mirror = Mirror()
    heartbeat.start_ping(mirror)
    return mirror


def follow(mirror: Any) -> None:
    """Have the SDK write the ids of running jobs where the pings read them: it makes a mirror of its own at start."""
    from runpod.serverless.modules.worker_state import JobsProgress

    JobsProgress().set_mirror(mirror)


def stop() -> None:
    """End the pings."""
    for process in multiprocessing.active_children():
        process.terminate()
        process.join()
