"""People in photographs, by their faces, which CenterFace finds."""

from __future__ import annotations

from dataclasses import dataclass

from engine import hookimpl
from engine.components import RegionFinder
from engine.config import ComponentConfig
from engine.people import PeopleFinder
from engine.plugin.register import Register


@dataclass
class FacesConfig(ComponentConfig):
    """People in photographs: faces are found (extra `people`) and grown to hair, shoulders and body."""

    name: str = "faces"


@hookimpl
def register_regions(register: Register[RegionFinder]) -> None:
    register(PeopleFinder, FacesConfig)
