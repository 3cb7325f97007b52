"""Config -> the components that a request may choose: sampler, guidance, step cache."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from engine.components import Sampler
from engine.config import Config
from engine.multitalk.cache import Agree, StepCache, make_cache
from engine.multitalk.guidance import Guidance, make_guidance
from engine.plugin.manager import Registry


@dataclass(frozen=True)
class Sampling:
    """What steers the denoising of one request; guidance and cache keep state, so they are made anew for each."""

    sampler: Sampler
    guidance: Guidance
    cache: StepCache


def build_sampling(config: Config, registry: Registry, *, agree: Agree | None = None) -> Sampling:
    """Build what `config` names; for `agree` see `make_cache`. Raises ConfigError for a value out of range."""
    return Sampling(
        sampler=registry.samplers.build(config.sampler),
        guidance=make_guidance(**_fields(config.guidance)),
        cache=make_cache(**_fields(config.cache), agree=agree),
    )


def _fields(config: Any) -> dict[str, Any]:
    return asdict(config)
