"""No filter: the network hears the voices as they are."""

from __future__ import annotations

from dataclasses import dataclass

from engine import hookimpl
from engine.components import CancelToken, Samples, VoiceFilter
from engine.config import ComponentConfig
from engine.plugin.register import Register


@dataclass
class NoneConfig(ComponentConfig):
    """No filter: the network hears the voices as they are."""

    name: str = "none"


class NoFilter:
    """Changes nothing."""

    filters = False

    def __init__(self, config: NoneConfig) -> None:
        pass

    def check(self) -> None:
        """Do nothing: it needs no package."""

    def clean(self, voice: Samples, *, cancel: CancelToken | None = None) -> tuple[Samples, str]:
        """Return `voice`."""
        return voice, ""


@hookimpl
def register_vocals(register: Register[VoiceFilter]) -> None:
    register(NoFilter, NoneConfig)
