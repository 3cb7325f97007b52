"""Drawn people, as the embedded model knows them."""

from __future__ import annotations

from dataclasses import dataclass

from engine import hookimpl
from engine.components import RegionFinder
from engine.config import ComponentConfig
from engine.people import PeopleFinder
from engine.plugin.register import Register


@dataclass
class DrawnConfig(ComponentConfig):
    """Drawn people, as the embedded model knows them: a small detector in this package."""

    name: str = "drawn"


@hookimpl
def register_regions(register: Register[RegionFinder]) -> None:
    register(PeopleFinder, DrawnConfig)
