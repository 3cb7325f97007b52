"""People in photographs, by their faces and the outlines of their bodies."""

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
class PeopleConfig(ComponentConfig):
    """People in photographs: as faces (extra `people`), but as wide as the outline of each body."""

    name: str = "people"


class PeopleFinder:
    """Finds faces with CenterFace, and outlines with GrabCut."""

    def __init__(self, config: PeopleConfig) -> None:
        pass

    def find(self, picture: Any) -> tuple[Found, ...]:
        """See `RegionFinder`. Raises MissingExtra."""
        return find_people(picture, "people")


@hookimpl
def register_regions(register: Register[RegionFinder]) -> None:
    register(PeopleFinder, PeopleConfig)
