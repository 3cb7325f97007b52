"""Guidance, step caches and quantisers as tests want them: by name, with what differs from the defaults."""

from __future__ import annotations

from typing import Any

from engine.components import Agree, Guidance, Quantiser, SharedCache, StepCache
from engine.plugin.manager import installed


def make_guidance(name: str, text_scale: float, audio_scale: float, **others: Any) -> Guidance:
    """Build an installed guidance with fresh state; one that has no such field leaves it out."""
    register = installed().guidance
    kind: Any = register.config(name)
    known = {key: value for key, value in others.items() if key in kind.__dataclass_fields__}
    return register.build(kind(text_scale=text_scale, audio_scale=audio_scale, **known))


def make_cache(name: str, *, agree: Agree | None = None, **fields: Any) -> StepCache:
    """Build an installed step cache; with `agree` for one of several processes."""
    register = installed().caches
    kind: Any = register.config(name)
    cache = register.build(kind(**fields))
    if agree is None:
        return cache
    assert isinstance(cache, SharedCache)
    return cache.shared(agree)


def make_quantiser(name: str) -> Quantiser | None:
    """Build what makes a quantisation while weights are loaded; None for a name of files."""
    register = installed().quants
    return register.build_default(name) if name in register.names() else None
