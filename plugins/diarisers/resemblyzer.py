"""Who speaks when, by speech that Silero VAD finds and voices that Resemblyzer compares; both ship their weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec

from engine import hookimpl
from engine.components import CancelToken, Diariser, Samples
from engine.config import DiariserConfig, within
from engine.data import Turn
from engine.errors import MissingExtra
from engine.plugin.register import Register


@dataclass
class ResemblyzerConfig(DiariserConfig):
    """Silero VAD and Resemblyzer's voice encoder, on the CPU; needs the extra [diarise]."""

    name: str = "resemblyzer"
    #: Probability from which on a section of 32 ms is speech.
    speech: float = field(default=0.5, metadata=within(0.05, 0.95))
    #: Difference of similarities below which a longer section may be of two people, who are then given both.
    margin: float = field(default=0.05, metadata=within(0, 0.5))


class Resemblyzer:
    """Finds speech, embeds sections of it, and divides them into as many groups as there are people."""

    by_channel = False

    def __init__(self, config: ResemblyzerConfig) -> None:
        self._speech = config.speech
        self._margin = config.margin

    def check(self) -> None:
        """Raise MissingExtra if a package is not installed."""
        for module, package in (("silero_vad", "silero-vad"), ("onnxruntime", "onnxruntime"), ("resemblyzer", "")):
            if find_spec(module) is None:
                why = "diariser=channels needs none, for a recording with a person on each channel"
                raise MissingExtra("diariser=resemblyzer", package or module, "diarise", why=why)

    def find(self, sound: Samples, people: int, *, cancel: CancelToken | None = None) -> Sequence[Turn]:
        """Return who speaks when; a recording with one person needs no comparison."""
        from engine.media.diarise import embed, similarities, speech_sections, turns

        mono = sound.mean(axis=1)
        speech = speech_sections(mono, self._speech, cancel)
        if not speech:
            return []
        if people == 1:
            return [Turn(0, begin, end) for begin, end in speech]
        centers, embedded = embed(mono, speech, cancel)
        return turns(speech, centers, similarities(embedded, people), self._margin)


@hookimpl
def register_diarisers(register: Register[Diariser]) -> None:
    register(Resemblyzer, ResemblyzerConfig)
