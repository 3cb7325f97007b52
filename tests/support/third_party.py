"""An environment of its own that has our packages and, installed by pip, packages of others."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path


def run(*words: str, cwd: Path) -> str:
    """Run a command without this checkout on Python's path and return what it prints. Fails with its errors."""
    done = subprocess.run(
        words,
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def environment(place: Path, packages: Sequence[Path]) -> str:
    """Make an environment below `place`, install the folders `packages` into it, and return its interpreter."""
    run(sys.executable, "-m", "venv", "--without-pip", str(place / "venv"), cwd=place)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    shared = sysconfig.get_paths()["purelib"]
    # addsitedir also reads the .pth files there, so an editable install of ours is found.
    pth = place / "venv" / "lib" / version / "site-packages" / "shared.pth"
    pth.write_text(f"import site; site.addsitedir({shared!r})\n")
    interpreter = str(place / "venv" / "bin" / "python")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", interpreter)
    run(*pip, "install", "--quiet", "--no-deps", "--no-build-isolation", *map(str, packages), cwd=place)
    return interpreter
