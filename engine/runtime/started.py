"""The other processes of `parallel`, which a worker starts on its own machine, as torchrun does for one video."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from engine.config import ParallelConfig
from engine.errors import ConfigError
from engine.runtime.device import pick_device

logger = logging.getLogger(__name__)

#: What a started process does; its overrides come on standard input, because they may contain secrets.
_CODE = "import json, sys; from engine.cli.run import launch; sys.exit(launch(json.load(sys.stdin)))"
#: Seconds between two looks at processes that have not joined yet, and seconds that they get to end.
_POLL, _GRACE = 0.5, 10.0


@contextmanager
def started(
    overrides: Sequence[str], config: ParallelConfig, device: str, joined: threading.Event
) -> Iterator[ParallelConfig]:
    """Start processes 1, 2, ... with `overrides`, and yield this process's config, as process 0; end them afterwards.

    The caller joins the group inside, and then sets `joined`. If a process ends before that, this process ends too,
    with status 1, because it would wait for the other for minutes. Raises ConfigError if there is nothing to share.
    """
    size = config.processes or _devices(device)
    if size < 2:
        raise ConfigError(
            f"parallel={config.name} needs two devices or more, and this machine has {size}",
            field="parallel.processes",
            hint="choose parallel=none, or give a number of processes",
        )
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    # As it is now: this process sees only its own device later.
    before = dict(os.environ)
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(1, size):
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
            process = subprocess.Popen(
                [sys.executable, "-c", _CODE], stdin=subprocess.PIPE, env=before | address | place
            )
            processes.append(process)
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError), process.stdin:
                process.stdin.write(json.dumps(list(overrides)).encode())
        # Not rank and size: configs of later requests would have them, and differ from that of the start.
        os.environ.update(address)
        threading.Thread(target=_watch, args=(processes, joined), name="multitalk-processes", daemon=True).start()
        yield replace(config, rank=0, local_rank=0, size=size)
    finally:
        joined.set()
        _end(processes)


def _watch(processes: Sequence[subprocess.Popen[bytes]], joined: threading.Event) -> None:
    while not joined.wait(_POLL):
        for rank, process in enumerate(processes, start=1):
            if process.poll() is not None:
                logger.error("process %d ended with status %d before it joined", rank, process.returncode)
                os._exit(1)


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Wait for processes that were told to end, or have lost this one; kill those that take too long."""
    for process in processes:
        try:
            process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _devices(device: str) -> int:
    import torch

    return torch.cuda.device_count() if pick_device(device) == "cuda" else 1


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
