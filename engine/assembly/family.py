"""Whether a config asks for what the network's family cannot do."""

from __future__ import annotations

from typing import Any

from engine.config import Config
from engine.errors import ConfigError

#: Values that choose nothing.
_NOTHING: tuple[Any, ...] = ("none", None, False, 0, "", [])


def check_family(config: Config) -> None:
    """Raise ConfigError for a choice that the network's family cannot run; known before anything is loaded."""
    family, model = config.family, config.model.name
    for name, why in family.cannot.items():
        key, _, refused = name.partition("=")
        chosen = _chosen(config, key)
        if chosen == refused if refused else chosen not in _NOTHING:
            raise ConfigError(
                f"{key}={chosen} does not work with model={model}: {why}",
                field=key,
                hint=f"leave {key} out, or choose another model",
                code="conflict",
            )
    styles = {"continuation.style": (family.styles, "its family continues windows in another way")}
    for key, (names, why) in {**family.only, **styles}.items():
        if (chosen := _chosen(config, key)) not in names:
            raise ConfigError(
                f"{key}={chosen} does not work with model={model}: {why}",
                field=key,
                hint=f"choose {' or '.join(map(str, names))}, or another model",
                code="conflict",
            )


def _chosen(config: Config, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return getattr(value, "name", value)
