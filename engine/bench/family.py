"""The network that the benches of parts measure: MultiTalk's, as a plugin offers it."""

from __future__ import annotations

from functools import cache
from typing import Any

from engine.plugin.manager import installed


@cache
def network() -> Any:
    """Return the class of MultiTalk's transformer. Raises UnknownComponent if the family is not installed."""
    return installed().families.build_default("multitalk").network()
