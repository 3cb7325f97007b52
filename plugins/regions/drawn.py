"""Drawn people, as the embedded model knows them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from engine import hookimpl
from engine.components import RegionFinder
from engine.config import ComponentConfig
from engine.data import Found
from engine.people import find_people
from engine.plugin.register import Register


@dataclass
class DrawnConfig(ComponentConfig):
    """Drawn people, as the embedded model knows them: a small detector in this package."""

    name: str = "drawn"


class DrawnPeople:
    """Finds drawn people."""

    def __init__(self, config: DrawnConfig) -> None:
        pass

    def find(self, picture: Any) -> tuple[Found, ...]:
        """See `RegionFinder`."""
        return find_people(picture, "drawn")


@hookimpl
def register_regions(register: Register[RegionFinder]) -> None:
    register(DrawnPeople, DrawnConfig)
