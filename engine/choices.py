"""Config -> the components that a request may choose: sampler, guidance, step cache, LoRAs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engine.components import Sampler
from engine.config import AdapterConfig, Config
from engine.multitalk.cache import Agree, StepCache, make_cache
from engine.multitalk.guidance import Guidance, make_guidance
from engine.registry import Registry

Loras = tuple[tuple[Path, float], ...]


@dataclass(frozen=True)
class Choices:
    """What steers the denoising of one request; guidance and cache keep state, so they are made anew for each."""

    sampler: Sampler
    guidance: Guidance
    cache: StepCache


def choose(config: Config, registry: Registry, *, agree: Agree | None = None) -> Choices:
    """Build what `config` names; for `agree` see `make_cache`. Raises ConfigError for a value out of range."""
    return Choices(
        sampler=registry.samplers.build(config.sampler),
        guidance=make_guidance(**_fields(config.guidance)),
        cache=make_cache(**_fields(config.cache), agree=agree),
    )


def bundled_loras(config: Config, weights: Path) -> Loras:
    """Return the LoRAs (file, scale) that the config's bundle wants on, and the extra ones."""
    bundle = config.model.turbo if config.sampler.bundle == "turbo" else config.model.standard
    return _files([*bundle.loras, *config.lora.extra], weights)


def loadable_loras(config: Config, weights: Path) -> Loras:
    """Return the LoRAs to load at boot: those of the config itself and, where they can be switched, the others present.

    The other bundle's files may be absent: not everyone wants turbo.
    """
    wanted = bundled_loras(config, weights)
    if config.lora.mode == "merged":
        return wanted
    known = {path for path, _ in wanted}
    others = _files([*config.model.standard.loras, *config.model.turbo.loras], weights)
    return (*wanted, *((path, scale) for path, scale in others if path not in known and path.is_file()))


def _files(loras: list[AdapterConfig], weights: Path) -> Loras:
    return tuple((weights / lora.file, lora.scale) for lora in loras)


def _fields(config: Any) -> dict[str, Any]:
    return asdict(config)
