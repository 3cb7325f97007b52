"""People in photographs, by their faces."""

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
class FacesConfig(ComponentConfig):
    """People in photographs: faces are found (extra `people`) and grown to hair, shoulders and body."""

    name: str = "faces"


class FacesFinder:
    """Finds faces with CenterFace."""

    def __init__(self, config: FacesConfig) -> None:
        pass

    def find(self, picture: Any) -> tuple[Found, ...]:
        """See `RegionFinder`. Raises MissingExtra."""
        return find_people(picture, "faces")


@hookimpl
def register_regions(register: Register[RegionFinder]) -> None:
    register(FacesFinder, FacesConfig)
