"""Whether torch.compile can generate code for a GPU on this machine."""

from __future__ import annotations

import os
import shutil
import sysconfig
from importlib.util import find_spec
from pathlib import Path


def find_compiler() -> str | None:
    """Return the C compiler that Triton and torch.compile would use; None if there is none."""
    return next(
        (path for name in (os.environ.get("CC"), "gcc", "cc", "clang") if name and (path := shutil.which(name))), None
    )


def missing_for_triton() -> tuple[str, str] | None:
    """Return what Triton lacks here and what to do about it; None if it can compile.

    Triton builds a small C extension before its first kernel runs, so it needs a compiler and Python's headers.
    """
    if find_spec("triton") is None:
        return "Triton is not installed", "pip install triton, or install a CUDA build of torch, which brings it"
    if find_compiler() is None:
        return "there is no C compiler, which Triton needs", "install gcc (Debian: apt-get install gcc libc6-dev)"
    if not Path(sysconfig.get_paths()["include"], "Python.h").is_file():
        return "Python's headers are missing, which Triton needs", "Debian: apt-get install python3-dev"
    return None
