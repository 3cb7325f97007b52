"""Any text -> a Hydra override that sets it in the config unchanged."""

from __future__ import annotations

import re
from collections.abc import Iterable

from engine.errors import ConfigError


def override(key: str, value: str) -> str:
    """Return the override that sets `key` to the text `value`, whatever it contains. Raises ConfigError."""
    return f"{key}={quoted(key, value)}"


def override_list(key: str, values: Iterable[str]) -> str:
    """Return the override that sets `key` to a list of texts. Raises ConfigError."""
    return f"{key}=[{','.join(quoted(key, value) for value in values)}]"


def quoted(key: str, text: str) -> str:
    """Return `text` as a quoted value of Hydra's grammar, for `key`. Raises ConfigError."""
    if text == "???":
        # OmegaConf's word for "missing": it has no escape.
        raise ConfigError("'???' stands for a missing value", field=key, hint="write something else")
    # OmegaConf: backslashes before an interpolation are halved, and one more makes it plain text.
    text = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)
    # Hydra: in quotes, backslashes count only before a quote or at the end.
    text = re.sub(r"(\\*)'", r"\1\1\\'", text)
    return "'" + re.sub(r"(\\+)\Z", r"\1\1", text) + "'"
