"""Allow fake tensors on "cuda" in a torch that was built without CUDA."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch

from engine.errors import ConfigError

#: Numbers of c10::DeviceType, fixed by torch/headeronly/core/DeviceType.h.
_CUDA, _META = 1, 14
_SLOTS = 21
_REGISTRY = "_ZN3c104impl26device_guard_impl_registryE"


def provide_cuda_guard() -> None:
    """Give "cuda" a device guard that does nothing, unless torch has one. Raises ConfigError if this is impossible.

    Each operation on a fake CUDA tensor asks torch's C++ core for the guard of that device type. A build with CUDA has
    one, and FakeTensorMode replaces it if there is no GPU. A CPU build has none, and raises. The guard of the meta
    device does nothing, so its entry in the core's table is copied to CUDA's entry. The table is a plain array of
    pointers in libc10; nothing has to be compiled.
    """
    slots = _registry()
    if not slots[_CUDA]:
        if not slots[_META]:
            raise _unknown("its table of device guards has no entry for the meta device")
        slots[_CUDA] = slots[_META]


def _registry() -> ctypes.Array[ctypes.c_void_p]:
    libraries = sorted((Path(torch.__file__).parent / "lib").glob("libc10.*"))
    for path in libraries:
        try:
            return (ctypes.c_void_p * _SLOTS).in_dll(ctypes.CDLL(str(path)), _REGISTRY)
        except (OSError, ValueError):
            continue
    raise _unknown(f"{_REGISTRY} is in none of {[path.name for path in libraries]}")


def _unknown(why: str) -> ConfigError:
    return ConfigError(
        f"torch {torch.__version__} cannot pretend a CUDA device: {why}",
        hint="use a build of torch with CUDA (no GPU is needed), or torch 2.13",
    )
