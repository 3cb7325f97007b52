"""Equal parts of the picture from left to right, one for each speaker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from engine import hookimpl
from engine.components import RegionFinder
from engine.config import ComponentConfig
from engine.data import Found
from engine.plugin.register import Register


@dataclass
class EqualConfig(ComponentConfig):
    """Equal parts of the picture from left to right, without looking at it."""

    name: str = "equal"


class EqualParts:
    """Looks at nothing."""

    looks = False

    def __init__(self, config: EqualConfig) -> None:
        pass

    def find(self, picture: Any) -> tuple[Found, ...] | None:
        """Return None: the picture is divided into equal parts."""
        return None


@hookimpl
def register_regions(register: Register[RegionFinder]) -> None:
    register(EqualParts, EqualConfig)
