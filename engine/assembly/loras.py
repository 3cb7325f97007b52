"""Config -> the LoRA files that it loads, and those that it switches on. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from engine.config import AdapterConfig, Config

Loras = tuple[tuple[Path, float], ...]


def bundled_loras(config: Config, weights: Path) -> Loras:
    """Return the LoRAs (file, scale) that the config's bundle switches on, and the extra ones."""
    bundle = config.model.bundles[config.sampler.bundle]
    return _files([*bundle.loras, *config.lora.extra], weights)


def loadable_loras(config: Config, weights: Path) -> Loras:
    """Return the LoRAs to load at boot: those of the config and, if they can be switched, other files that exist.

    Files of other bundles may be missing: not everyone uses them.
    """
    bundled = bundled_loras(config, weights)
    if config.lora.mode == "merged":
        return bundled
    loaded = {path for path, _ in bundled}
    others = _files([lora for bundle in config.model.bundles.values() for lora in bundle.loras], weights)
    return (*bundled, *((path, scale) for path, scale in others if path not in loaded and path.is_file()))


def named_by(config: Config, weights: Path, path: Path) -> str:
    """Return the key of the config that names a LoRA's file, such as "lora.extra"."""
    extra = {file for file, _ in _files(config.lora.extra, weights)}
    return "lora.extra" if path in extra else f"model.{config.sampler.bundle}.loras"


def _files(loras: list[AdapterConfig], weights: Path) -> Loras:
    return tuple((weights / lora.file, lora.scale) for lora in loras)
