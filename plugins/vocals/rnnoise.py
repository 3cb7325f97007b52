"""RNNoise: removes noise, but not music, from a voice. Its weights are in its package."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

from engine import hookimpl
from engine.components import CancelToken, Samples, VoiceFilter
from engine.config import ComponentConfig
from engine.errors import MissingExtra
from engine.plugin.register import Register


@dataclass
class RnnoiseConfig(ComponentConfig):
    """RNNoise on every voice: removes noise, not music; needs the extra [vocals]."""

    name: str = "rnnoise"


class Rnnoise:
    """Filters every voice."""

    filters = True

    def __init__(self, config: RnnoiseConfig) -> None:
        pass

    def check(self) -> None:
        """Raise MissingExtra without pyrnnoise."""
        if find_spec("pyrnnoise") is None:
            raise MissingExtra("vocals=rnnoise", "pyrnnoise", "vocals")

    def clean(self, voice: Samples, *, cancel: CancelToken | None = None) -> tuple[Samples, str]:
        """Return the voice without noise."""
        from engine.machine.rnnoise import denoise

        return denoise(voice, cancel=cancel).voice, "the network hears the voice without noise (vocals=rnnoise)"


@hookimpl
def register_vocals(register: Register[VoiceFilter]) -> None:
    register(Rnnoise, RnnoiseConfig)
