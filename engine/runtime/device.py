"""Resolves "auto" for device and dtype on this machine."""

from __future__ import annotations

import os

import torch

from engine.data.attention import AttentionSite
from engine.errors import ConfigError
from engine.machine.device import resolve_decode_dtype, resolve_device, resolve_dtype

#: Environment variables of torch's CUDA allocator: the current name, and the one before torch 2.9.
ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


def pick_device(name: str) -> str:
    """Return "cpu" or "cuda" for `name`, which may be "auto". Raises ConfigError.

    For CUDA it also configures torch's allocator, unless the user's environment does.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"no device named {name!r}", field="device", hint="auto, cpu or cuda")
    there = name != "cpu" and torch.cuda.is_available()
    device = resolve_device(name, cuda=there)
    if device == "cuda":
        if not there:
            raise ConfigError("this machine has no CUDA device that torch can use", field="device", hint="device=cpu")
        _let_segments_grow()
    return device


def attention_site(device: str, dtype: str, processes: int = 1) -> AttentionSite:
    """Return what a choice of attention kernel may depend on, on this machine: `device` is "cuda" or "cpu"."""
    rocm = torch.version.hip is not None
    # Asking starts CUDA; `pick_device` has configured its allocator before.
    asked = device == "cuda" and (rocm or torch.version.cuda is not None) and torch.cuda.is_available()
    capability = torch.cuda.get_device_capability() if asked else None
    return AttentionSite(device, dtype, capability, rocm, processes)


def _let_segments_grow() -> None:
    """Enable expandable segments of the allocator, before it starts.

    Allocations differ much in size (weights, activations of a window, decoded frames). Segments of fixed sizes would
    fragment the memory of small cards.
    """
    if not any(variable in os.environ for variable in ALLOCATOR):
        version = tuple(int(part) for part in torch.__version__.split(".")[:2])
        os.environ[ALLOCATOR[0] if version >= (2, 9) else ALLOCATOR[1]] = "expandable_segments:True"


def pick_dtype(name: str, device: str) -> str:
    """Return "bfloat16" or "float32" for `name`, which may be "auto", on `device`. Raises ConfigError."""
    if name not in ("auto", "bfloat16", "float32"):
        raise ConfigError(f"no dtype named {name!r}", field="dtype", hint="auto, bfloat16 or float32")
    return resolve_dtype(name, device)


def pick_decode_dtype(name: str, device: str, dtype: str) -> str:
    """Return "bfloat16" or "float32" for `name`, which may be "auto"; `dtype` is the transformer's. Raises ConfigError.

    "auto" follows the transformer on CUDA. Whoever asks for float32 there, or works on a CPU, wants exact frames.
    """
    if name not in ("auto", "bfloat16", "float32"):
        raise ConfigError(f"no dtype named {name!r}", field="vae.decode_dtype", hint="auto, bfloat16 or float32")
    return resolve_decode_dtype(name, device, dtype)
