"""Starts the SDK's heartbeat before anything uses the device."""

from __future__ import annotations

import multiprocessing
import os
from typing import Any


def start() -> Any:
    """Start the SDK's heartbeat process and return its mirror of the ids of running jobs.

    The SDK itself would fork it after the fitness checks, one of which initialises CUDA, and a worker that is still
    reading its weights would seem dead. Outside the platform nothing is started.
    """
    from runpod.serverless.modules.worker_state import PingJobMirror
    from runpod.serverless.worker import heartbeat

    class Mirror(PingJobMirror):  # type: ignore[misc]
        """Ends the heartbeat process when the worker has ended: a failed fitness check has no time to do it."""

        parent = os.getpid()

        def get(self) -> str | None:
            # Called before each ping, in the heartbeat process.
            if os.getppid() != self.parent:
                os._exit(0)
            job_ids: str | None = super().get()
            return job_ids

    mirror = Mirror()
    heartbeat.start_ping(mirror)
    return mirror


def follow(mirror: Any) -> None:
    """Let the SDK write the ids of running jobs to our mirror, instead of the one that it creates at its start."""
    from runpod.serverless.modules.worker_state import JobsProgress

    JobsProgress().set_mirror(mirror)


def stop() -> None:
    """End the heartbeat process."""
    for process in multiprocessing.active_children():
        process.terminate()
        process.join()
