"""A filter only for voices with noise: level and spectrum of the pauses decide."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.util import find_spec

from engine import hookimpl
from engine.components import CancelToken, Samples, VoiceFilter
from engine.config import ComponentConfig, within
from engine.errors import MissingExtra
from engine.plugin.register import Register

#: Flatness of the pauses from which on their sound is noise (`engine.machine.rnnoise.Denoised`).
_NOISE = 0.45


@dataclass
class AutoConfig(ComponentConfig):
    """RNNoise if there is loud noise, but no music, in the pauses of a voice; needs the extra [vocals]."""

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
        """Return the voice without noise if there is any; with music, which would make it worse, as it is."""
        from engine.machine.rnnoise import denoise

        cleaned = denoise(voice, cancel=cancel)
        if cleaned.level < self._level:
            return voice, ""
        what = f"there is sound at {cleaned.level:.0f} dB between the words"
        if cleaned.flatness < _NOISE:
            return voice, (
                f"{what} with tones, such as music or other people, which vocals=auto does not remove; for better lips "
                "give a voice that was separated from it, and the original as the soundtrack"
            )
        return cleaned.voice, f"{what}, so the network hears the voice without it (vocals=auto)"


@hookimpl
def register_vocals(register: Register[VoiceFilter]) -> None:
    register(Auto, AutoConfig)
