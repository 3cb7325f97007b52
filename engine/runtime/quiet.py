"""Libraries speak to programmers; our errors and warnings speak to users."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from pathlib import Path


def silence_libraries() -> None:
    """Keep the libraries' warnings, logs and bars from stderr; -W or PYTHONWARNINGS bring the warnings back.

    Has to be called before torch is imported. What the environment already says stays.
    """
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    for variable in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        os.environ.setdefault(variable, "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TORCH_LOGS", "-all")
    # PyTorch makes a folder for compiled kernels as soon as it is imported: not among the temporary files.
    cache = Path("~/.cache").expanduser()
    if os.access(cache if cache.exists() else cache.parent, os.W_OK | os.X_OK):
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache / "multitalk-engine" / "torchinductor"))
    root = logging.getLogger()
    if not root.handlers:
        # Without any handler Python prints warnings of every logger.
        root.addHandler(logging.NullHandler())
