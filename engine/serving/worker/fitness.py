"""What a worker needs before it takes jobs, and what to do where it is missing."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

from engine.components import Service
from engine.machine.host_memory import free_host_memory

Check = Callable[[], None]

_GIB = 2**30
#: Seconds; nvidia-smi takes a moment where no driver is loaded yet.
_PATIENCE = 30.0
#: Bytes of the temporary folder that a job's media and video may take.
_ROOM = _GIB


class UnfitError(Exception):
    """The worker cannot work here; the text says what to do. The SDK reports it and ends the process."""


def checks(service: Service) -> list[Check]:
    """Return the checks, by the names under which the SDK reports them. None of them imports torch."""
    # Once for all of them, and only on the platform, which alone runs them: it may speak to S3.
    report = cache(service.check)

    def multitalk_device() -> None:
        check_device(str(service.capabilities().get("device", "auto")))

    def multitalk_memory() -> None:
        weights = report().get("weights")
        check_memory(None if weights is None else Path(str(weights)))

    def multitalk_room() -> None:
        check_room(Path(tempfile.gettempdir()))

    def multitalk_weights() -> None:
        # The engine's own line: it names what is missing, where, and the command that fetches it.
        _raise(report()["failed"].get("weights"))

    def multitalk_sink() -> None:
        _raise(report()["failed"].get("sink"))

    return [multitalk_device, multitalk_memory, multitalk_room, multitalk_weights, multitalk_sink]


def check_device(device: str, command: tuple[str, ...] = ("nvidia-smi", "--list-gpus")) -> None:
    """Raise UnfitError where `device` needs a GPU and the driver shows none."""
    if device != "cuda":
        return
    # Through the driver's own tool: to ask torch takes seconds, and the heartbeat is not forked from CUDA.
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, check=False)
        shown = done.returncode == 0 and "GPU" in done.stdout
    except (OSError, subprocess.TimeoutExpired):
        shown = False
    if not shown:
        raise UnfitError(
            f"{command[0]} shows no GPU; "
            "choose a GPU for the endpoint and `--gpus all` for docker, or boot with device=cpu"
        )


def check_memory(weights: Path | None, available: Callable[[], int | None] | None = None) -> None:
    """Raise UnfitError where this machine's memory does not hold the largest file of weights."""
    if weights is None:
        return
    need = max((path.stat().st_size for path in weights.rglob("*.safetensors")), default=0)
    have = (available or free_host_memory)()
    if have is not None and have < need:
        raise UnfitError(
            f"{have / _GIB:.1f} GiB of memory are free and one file of weights has {need / _GIB:.1f}; "
            "choose a machine with more memory, or smaller weights"
        )


def check_room(folder: Path, room: int = _ROOM) -> None:
    """Raise UnfitError where the folder of temporary files cannot hold a job's media."""
    found = os.statvfs(folder)
    free = found.f_bavail * found.f_frsize
    if free < room or not os.access(folder, os.W_OK | os.X_OK):
        raise UnfitError(
            f"{folder} has {free / _GIB:.1f} GiB free and a job needs {room / _GIB:.1f}; "
            "give the endpoint a larger container disk, or set TMPDIR"
        )


def _raise(problem: str | None) -> None:
    if problem is not None:
        # What to do comes first: the platform keeps 256 letters.
        what, _, hint = problem.rpartition("; ")
        raise UnfitError(f"{hint}; {what}" if what else hint)
