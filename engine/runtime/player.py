"""The system's player of videos."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from engine.errors import ConfigError

_FIELD = "--open"


def find_player() -> str:
    """Return the command that opens a file with the system's player. Raises ConfigError where nothing can be shown."""
    if sys.platform == "win32":
        return "start"
    if sys.platform == "darwin":
        return "open"
    if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise ConfigError(
            "this machine has no display (DISPLAY and WAYLAND_DISPLAY are not set)",
            field=_FIELD,
            hint="leave --open out, and copy the video to a machine with one",
        )
    command = shutil.which("xdg-open")
    if command is None:
        raise ConfigError("there is no xdg-open", field=_FIELD, hint="install xdg-utils, or leave --open out")
    return command


def play(player: str, path: Path) -> bool:
    """Open the video at `path` without waiting for the player; return whether the player could be started."""
    if player == "start":
        os.startfile(path)  # type: ignore[attr-defined]  # noqa: S606 - Windows alone
        return True
    try:
        # An absolute path cannot be read as a flag.
        subprocess.Popen(
            [player, str(path.absolute())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError:
        return False
    return True
