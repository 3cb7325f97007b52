"""Config -> how the network is compiled, and checks that the rest of the config goes with it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from engine.assembly.location import weights_of
from engine.config import Config
from engine.errors import ConfigError, UnknownComponent
from engine.loading.compiling import Compiling
from engine.machine.compiler import missing_for_triton
from engine.machine.device import resolve_device
from engine.planning.gpus import installed_cards

_NAMES = ("none", "blocks")
#: Folder of compiled kernels on a volume, next to the models' folders.
_FOLDER = ".compiled"


def check_compile(config: Config) -> None:
    """Raise ConfigError if the config asks to compile what cannot be compiled, or gains nothing."""
    if config.compile.name not in _NAMES:
        raise UnknownComponent("compile", config.compile.name, _NAMES)
    if config.compile.name == "none":
        return
    if config.parallel.name != "none":
        raise ConfigError(
            f"compile={config.compile.name} does not include the exchange between processes",
            field="compile",
            hint="choose compile=none, or parallel=none",
        )
    if config.quant.name == "gguf":
        raise ConfigError(
            f"compile={config.compile.name} does not include the unpacking of GGUF weights",
            field="compile",
            hint="choose compile=none, or another quant",
        )
    if config.compile.backend == "inductor" and resolve_device(config.device, cuda=_has_cuda()) == "cpu":
        raise ConfigError(
            f"compile={config.compile.name} makes nothing faster on a CPU",
            field="compile",
            hint="choose compile=none, or a machine with CUDA",
        )


def make_compiling(config: Config, folder: Path, device: str) -> Compiling | None:
    """Return how the network of the weights in `folder` is compiled on `device`; None: it is not compiled.

    Raises ConfigError if this machine cannot compile.
    """
    check_compile(config)
    if config.compile.name == "none":
        return None
    if config.compile.backend == "inductor" and device == "cuda" and (missing := missing_for_triton()) is not None:
        raise ConfigError(missing[0], field="compile", hint=f"{missing[1]}, or choose compile=none")
    return Compiling(config.compile.backend, _cache(config, folder))


def _cache(config: Config, folder: Path) -> Path | None:
    if config.compile.cache is not None:
        return Path(config.compile.cache).expanduser().absolute()
    weights = weights_of(config)
    # Folders of other sources belong to other programs, such as the cache of the Hugging Face Hub.
    on_volume = not weights.packaged and folder.name == weights.folder
    return folder.parent / _FOLDER if on_volume and os.access(folder.parent, os.W_OK | os.X_OK) else None


def _has_cuda() -> bool:
    # A plan does not import torch for this.
    torch = sys.modules.get("torch")
    return bool(installed_cards()) if torch is None else bool(torch.cuda.is_available())
