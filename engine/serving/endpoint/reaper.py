"""Outlives an endpoint that was killed, to end the worker processes it can no longer end itself.

Run as a script, alone. The first line of stdin is a word that stands in the environment of all that is to be ended, the
second a folder with their temporary files; the line `done` says that nothing is. If stdin closes without it, they are
killed and the folder is removed. Linux only: elsewhere there is no /proc.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
from pathlib import Path

#: A process that was just being made bears the word a moment later.
_ROUNDS, _PAUSE = 5, 0.2


def main() -> None:
    """Wait for stdin to close, and end what is left."""
    mark = sys.stdin.readline().strip().encode()
    disks = sys.stdin.readline().rstrip("\n")
    if not mark or "done" in sys.stdin.read():
        return
    for _ in range(_ROUNDS):
        for folder in Path("/proc").glob("[0-9]*"):
            # It may be gone meanwhile, or somebody else's.
            with contextlib.suppress(OSError):
                if mark in (folder / "environ").read_bytes():
                    os.kill(int(folder.name), signal.SIGKILL)
        time.sleep(_PAUSE)
    if disks:
        shutil.rmtree(disks, ignore_errors=True)


if __name__ == "__main__":
    main()
