"""Each channel of the recording is one person, as in recordings of telephone calls and of several microphones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine import hookimpl
from engine.components import CancelToken, Diariser, Samples
from engine.config import DiariserConfig
from engine.data import Turn
from engine.plugin.register import Register


@dataclass
class ChannelsConfig(DiariserConfig):
    """Each channel is one person, from left to right; nothing is searched."""

    name: str = "channels"


class Channels:
    """Gives each person one channel of the recording; the engine uses the channels as they are."""

    by_channel = True

    def __init__(self, config: ChannelsConfig) -> None:
        pass

    def check(self) -> None:
        """Do nothing: it needs no package."""

    def find(self, sound: Samples, people: int, *, cancel: CancelToken | None = None) -> Sequence[Turn]:
        """Return one turn for each channel, as long as the recording."""
        return [Turn(person, 0.0, len(sound) / 16_000) for person in range(min(people, sound.shape[1]))]


@hookimpl
def register_diarisers(register: Register[Diariser]) -> None:
    register(Channels, ChannelsConfig)
