"""Checks of a worker before it takes jobs; each failure says what to do."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from engine.components import Service
from engine.machine.host_memory import free_host_memory

Check = Callable[[], None]

_GIB = 2**30
#: Seconds; nvidia-smi is slow if the driver is not loaded yet.
_TIMEOUT = 30.0
#: Bytes of the temporary folder that a job's media and video may need.
_ROOM = _GIB


class UnfitError(Exception):
    """The worker cannot run here; the text says what to do. The SDK reports it and ends the process."""

    def __init__(self, what: str, hint: str = "") -> None:
        self.what, self.hint = what, hint
        super().__init__(f"{what}; {hint}" if hint else what)


def checks(service: Service) -> list[Check]:
    """Return the checks; the SDK reports each by its function's name. None of them imports torch."""
    # Called once for all checks, and only on the platform, because it may connect to S3.
    report = cache(service.check)

    def multitalk_device() -> None:
        check_device(str(service.capabilities().get("device", "auto")))

    def multitalk_memory() -> None:
        weights = report().get("weights")
        check_memory(None if weights is None else Path(str(weights)))

    def multitalk_room() -> None:
        check_disk_space(Path(tempfile.gettempdir()))

    def multitalk_weights() -> None:
        # The engine's own message: it names what is missing, where, and the command that downloads it.
        _raise(report(), "weights")

    def multitalk_sink() -> None:
        _raise(report(), "sink")

    return [multitalk_device, multitalk_memory, multitalk_room, multitalk_weights, multitalk_sink]


def check_device(device: str, command: tuple[str, ...] = ("nvidia-smi", "--list-gpus")) -> None:
    """Raise UnfitError if `device` needs a GPU and the driver has none."""
    if device != "cuda":
        return
    # With the driver's own tool: torch takes seconds, and must not initialise CUDA before the heartbeat is forked.
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
        has_gpu = done.returncode == 0 and "GPU" in done.stdout
    except (OSError, subprocess.TimeoutExpired):
        has_gpu = False
    if not has_gpu:
        raise UnfitError(
            f"{command[0]} shows no GPU",
            "choose a GPU for the endpoint and `--gpus all` for docker, or start with device=cpu",
        )


def check_memory(weights: Path | None, available: Callable[[], int | None] | None = None) -> None:
    """Raise UnfitError if the largest file of weights does not fit into this machine's free memory."""
    if weights is None:
        return
    needed = max((path.stat().st_size for path in weights.rglob("*.safetensors")), default=0)
    free = (available or free_host_memory)()
    if free is not None and free < needed:
        raise UnfitError(
            f"{free / _GIB:.1f} GiB of memory are free, but one file of weights has {needed / _GIB:.1f} GiB",
            "choose a machine with more memory, or smaller weights",
        )


def check_disk_space(folder: Path, needed: int = _ROOM) -> None:
    """Raise UnfitError if the folder of temporary files has no space for a job's media."""
    stats = os.statvfs(folder)
    free = stats.f_bavail * stats.f_frsize
    if free < needed or not os.access(folder, os.W_OK | os.X_OK):
        raise UnfitError(
            f"{folder} has {free / _GIB:.1f} GiB free, but a job needs {needed / _GIB:.1f} GiB",
            "give the endpoint a larger container disk, or set TMPDIR",
        )


def _raise(report: Mapping[str, Any], part: str) -> None:
    if (problem := report["failed"].get(part)) is not None:
        # The hint comes first, because the platform keeps only 256 characters.
        hint = report["hints"].get(part)
        raise UnfitError(f"{hint}; {problem.removesuffix(f'; {hint}')}" if hint else problem)
