"""Who says what and when in a dialogue, and the protocols of the components that make or find it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias

from engine.data.cancel import CancelToken

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

#: float32 mono.
Samples: TypeAlias = "npt.NDArray[np.float32]"


@dataclass(frozen=True)
class Voice:
    """How one person of a script sounds."""

    #: The person's number in the script, from 0; a component gives each number its own voice if `name` is None.
    number: int
    #: A name that the component knows; None: by `number`.
    name: str | None = None
    #: Language tag such as "en", "en-gb" or "de"; None: the component's own.
    language: str | None = None
    #: Speed relative to the component's own, 0.5 to 2.
    speed: float = 1.0


@dataclass(frozen=True)
class Turn:
    """A section of a dialogue in which one person speaks."""

    #: The person's index, from the left.
    person: int
    #: Seconds from the start of the dialogue to its begin and end.
    begins: float
    ends: float
    #: What is said; "" if it was found in a recording.
    text: str = ""


@dataclass(frozen=True)
class Dialogue:
    """The turns of a dialogue, made from a script or found in a recording."""

    #: The component that made or found them, such as "speech=espeak".
    by: str
    #: Name of each person, from the left; empty for people of a recording.
    people: tuple[str, ...]
    turns: tuple[Turn, ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Made:
    """What the engine made of a request's script or recording."""

    dialogue: Dialogue
    #: Addresses in the request's speakers -> the files; they exist as long as the request runs.
    files: Mapping[str, Path] = field(repr=False)
    #: The caller's recording, if the turns were found in one.
    recording: Path | None = field(default=None, repr=False)


class Speech(Protocol):
    """Text to speech."""

    def check(self) -> None:
        """Raise MissingExtra or ConfigError if it cannot speak on this machine."""
        ...

    def say(self, text: str, voice: Voice, *, cancel: CancelToken | None = None) -> tuple[Samples, int]:
        """Return `text` as float32 mono samples, -1 to 1, and their rate in Hz; the same text gives the same samples.

        Raises RequestError about `voice`, with the field "voice" or "language", and Cancelled.
        """
        ...


class Diariser(Protocol):
    """Who speaks when in a recording of several people."""

    #: Whether each channel of the recording is one person: the channels are used as they are, and `find` is not called.
    by_channel: bool

    def check(self) -> None:
        """Raise MissingExtra if a package is not installed."""
        ...

    def find(self, sound: Samples, people: int, *, cancel: CancelToken | None = None) -> Sequence[Turn]:
        """Return who speaks when, sorted by `begins`; turns may overlap.

        `sound` is (samples, channels), float32 at 16 kHz. `people` is the number of people, 1 to 8; fewer may be found.
        Person 0 is the one who speaks first. Raises RequestError if the recording cannot be divided, and Cancelled.
        """
        ...


class VoiceFilter(Protocol):
    """Takes music and noise from a voice before the network hears it."""

    #: Whether it may change a voice. If not, `check` and `clean` are not called, and videos do not store the choice.
    filters: bool

    def check(self) -> None:
        """Raise MissingExtra if a package is not installed."""
        ...

    def clean(self, voice: Samples, *, cancel: CancelToken | None = None) -> tuple[Samples, str]:
        """Return the voice alone, float32 mono at 16 kHz and of the same length, and a sentence about what changed.

        The sentence is "" if there is nothing to say about the voice. Raises Cancelled.
        """
        ...
