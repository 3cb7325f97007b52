"""A filter only for voices with noise: the level of what RNNoise would remove decides."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.util import find_spec

from engine import hookimpl
from engine.components import CancelToken, Samples, VoiceFilter
from engine.config import ComponentConfig, within
from engine.errors import MissingExtra
from engine.plugin.register import Register


@dataclass
class AutoConfig(ComponentConfig):
    """RNNoise where there is loud noise in the pauses of a voice, else nothing; needs the extra [vocals]."""

    name: str = "auto"
    #: Level of the sound in the pauses, in dB relative to the voice, from which on it is filtered.
    level: float = field(default=-15.0, metadata=within(-60, 0))


class Auto:
    """Filters voices with noise."""

    filters = True

    def __init__(self, config: AutoConfig) -> None:
        self._level = config.level

    def check(self) -> None:
        """Raise MissingExtra without pyrnnoise."""
        if find_spec("pyrnnoise") is None:
            raise MissingExtra("vocals=auto", "pyrnnoise", "vocals")

    def clean(self, voice: Samples, *, cancel: CancelToken | None = None) -> tuple[Samples, str]:
        """Return the voice without noise if there is any."""
        from engine.machine.rnnoise import denoise

        cleaned, level = denoise(voice, cancel=cancel)
        if level < self._level:
            return voice, ""
        told = f"there is sound at {level:.0f} dB between the words, so the network hears the voice without it"
        return cleaned, f"{told} (vocals=auto)"


@hookimpl
def register_vocals(register: Register[VoiceFilter]) -> None:
    register(Auto, AutoConfig)
