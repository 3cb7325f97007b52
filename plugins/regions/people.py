"""People in photographs, by their faces and the outlines of their bodies, which GrabCut finds."""

from __future__ import annotations

from dataclasses import dataclass

from engine import hookimpl
from engine.components import RegionFinder
from engine.config import ComponentConfig
from engine.people import PeopleFinder
from engine.plugin.register import Register


@dataclass
class PeopleConfig(ComponentConfig):
    """People in photographs: as faces (extra `people`), but as wide as the outline of each body."""

    name: str = "people"


@hookimpl
def register_regions(register: Register[RegionFinder]) -> None:
    register(PeopleFinder, PeopleConfig)
