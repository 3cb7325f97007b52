"""The best finder that is installed and suits the model."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from omegaconf import II

from engine import hookimpl
from engine.components import RegionFinder
from engine.config import ComponentConfig
from engine.data import Found
from engine.errors import MissingExtra
from engine.people import find_people
from engine.plugin.register import Register


@dataclass
class AutoConfig(ComponentConfig):
    """Drawn people for the embedded model, faces for others if the extra `people` is installed, else equal parts."""

    name: str = "auto"
    #: Look for drawn people first; the default is whether the model is an embedded one.
    drawn: bool = II("model.packaged")


class AutoFinder:
    """Chooses; without anybody found it leaves the picture to equal parts."""

    looks = True

    def __init__(self, config: AutoConfig) -> None:
        self.drawn = config.drawn

    def find(self, picture: Any) -> tuple[Found, ...] | None:
        """See `RegionFinder`."""
        found: tuple[Found, ...] = find_people(picture, "drawn") if self.drawn else ()
        if not found:
            with suppress(MissingExtra):
                found = find_people(picture, "faces")
        return found or None


@hookimpl
def register_regions(register: Register[RegionFinder]) -> None:
    register(AutoFinder, AutoConfig)
