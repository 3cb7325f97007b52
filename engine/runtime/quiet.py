"""Silences libraries on stderr, where only the engine's own errors and warnings are printed."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from pathlib import Path


def silence_libraries() -> None:
    """Keep warnings, logs and progress bars of libraries off stderr; -W or PYTHONWARNINGS enable warnings again.

    Must be called before torch is imported. Variables that are already set are not changed.
    """
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    for variable in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        os.environ.setdefault(variable, "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TORCH_LOGS", "-all")
    # At its import PyTorch creates a folder for compiled kernels, by default among the temporary files.
    cache = Path("~/.cache").expanduser()
    if os.access(cache if cache.exists() else cache.parent, os.W_OK | os.X_OK):
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache / "multitalk-engine" / "torchinductor"))
    root = logging.getLogger()
    if not root.handlers:
        # Without any handler Python prints the warnings of every logger.
        root.addHandler(logging.NullHandler())
