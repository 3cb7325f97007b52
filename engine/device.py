"""What "auto" means for device and dtype on this machine."""

from __future__ import annotations

import torch

from engine.errors import ConfigError


def pick_device(name: str) -> str:
    """Return the device that `name` means here: "cpu" or "cuda". Raises ConfigError."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise ConfigError(f"no device named {name!r}", field="device", hint="auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("this machine has no CUDA device that torch can use", field="device", hint="device=cpu")
    return name


def pick_dtype(name: str, device: str) -> str:
    """Return "bfloat16" or "float32", whichever `name` means on `device`. Raises ConfigError."""
    if name == "auto":
        return "bfloat16" if device == "cuda" else "float32"
    if name not in ("bfloat16", "float32"):
        raise ConfigError(f"no dtype named {name!r}", field="dtype", hint="auto, bfloat16 or float32")
    return name
