"""Whether a config asks for what the network's family cannot do."""

from __future__ import annotations

from typing import Any

from engine.config import Config
from engine.errors import ConfigError

#: Values that choose nothing.
_NOTHING: tuple[Any, ...] = ("none", None, False, 0, "", [])


def check_family(config: Config) -> None:
    """Raise ConfigError for a choice that the network's family cannot run; known before anything is loaded."""
    family = config.family
    for key, why in family.cannot.items():
        value: Any = config
        for part in key.split("."):
            value = getattr(value, part)
        chosen = getattr(value, "name", value)
        if chosen not in _NOTHING:
            raise ConfigError(
                f"{key}={chosen} does not work with model={config.model.name}: {why}",
                field=key,
                hint=f"leave {key} out, or choose another model",
            )
