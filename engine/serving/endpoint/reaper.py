"""Kills the worker processes of an endpoint that was itself killed and can no longer stop them.

Runs as a separate script. The first line of stdin is a marker: the workers have it in their environment. The second
line is the folder of their temporary files. The line `done` means that the workers have stopped. If stdin closes
without it, the workers are killed and the folder is removed. Linux only, because it reads /proc.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
from pathlib import Path

#: A process that is just starting has the marker only a moment later, so the search is repeated.
_ROUNDS, _PAUSE = 5, 0.2


def main() -> None:
    """Wait for stdin to close, then kill the workers that are left."""
    mark = sys.stdin.readline().strip().encode()
    disks = sys.stdin.readline().rstrip("\n")
    if not mark or "done" in sys.stdin.read():
        return
    for _ in range(_ROUNDS):
        for folder in Path("/proc").glob("[0-9]*"):
            # The process may have ended, or belong to another user.
            with contextlib.suppress(OSError):
                if mark in (folder / "environ").read_bytes():
                    os.kill(int(folder.name), signal.SIGKILL)
        time.sleep(_PAUSE)
    if disks:
        shutil.rmtree(disks, ignore_errors=True)


if __name__ == "__main__":
    main()
