"""The speakers, the selected part of each voice's file, and its position in the file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Region:
    """The place of a speaker in the source picture; without `box` and `mask` it is automatic."""

    #: [x0, y0, x1, y1], x to the right, y down; pixels of the upright source picture, or fractions if none exceeds 1.
    box: tuple[float, float, float, float] | None = None
    #: Address of a picture with the source picture's shape; bright pixels belong to the speaker.
    mask: str | None = None
    #: Name of the finder that decided `box`; empty: nobody but the request.
    found: str = ""

    def __post_init__(self) -> None:
        """Take a `Path` as its text. Raises TypeError for what is no address."""
        object.__setattr__(self, "mask", address_of("mask", self.mask))


@dataclass(frozen=True)
class Found:
    """A person whom a finder saw in a picture (engine/people)."""

    #: [x0, y0, x1, y1] of head, shoulders and body; fractions of the upright picture, x to the right, y down.
    box: tuple[float, float, float, float]
    #: The same of the face.
    face: tuple[float, float, float, float]
    #: How sure the finder is, 0 to 1; comparable only within one finder.
    score: float
    #: The finder's name: "faces" or "drawn".
    finder: str


def address_of(name: str, value: Any) -> Any:
    """Return an address as text. Raises TypeError for what is neither text nor a path; None stays."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(
        f"{name}: a path or an address is needed, this is {type(value).__name__}; engine.Talker takes pictures and "
        "sounds in memory"
    )


class RegionFinder(Protocol):
    """Decides the regions of speakers whose region is automatic; created without torch."""

    #: Whether it looks at the picture. If not, `find` is not called, and the picture is divided into equal parts.
    looks: bool

    def find(self, picture: Any) -> tuple[Found, ...] | None:
        """Return the people in uint8 RGB (height, width, 3) from left to right, or None for equal parts.

        The same picture must give the same people. Raises MissingExtra if a package is not installed.
        """
        ...


@dataclass(frozen=True)
class Speaker:
    """One person in the picture, with the address of their voice, or None for a silent person."""

    #: It may end with the part of the file to use, such as `call.wav#left` (engine/media/excerpts.py).
    audio: str | None
    region: Region = Region()
    #: Begin of the used part of the file and its length in seconds; None: the whole file.
    start: float | None = None
    duration: float | None = None
    #: Seconds of silence before the voice in the video.
    delay: float | None = None
    #: Number of the audio track, from 1; None: the one that players select.
    track: int | None = None
    #: "left", "right" or the channel's number, from 1; None: all of them, mixed.
    channel: str | int | None = None

    def __post_init__(self) -> None:
        """Take a `Path` as its text. Raises TypeError for what is no address."""
        object.__setattr__(self, "audio", address_of("audio", self.audio))


@dataclass(frozen=True)
class Link:
    """A section of a sound file with its own header. Most files have one; `cat a.ogg b.ogg` makes a file with two."""

    #: First byte, and the byte after the last one.
    part: tuple[int, int]
    #: Index of the stream in the container.
    stream: int
    #: Begin of the section in the whole file, and its length, in seconds.
    at: float
    seconds: float
    #: The container's timestamp at `at`, in seconds.
    zero: float
    #: Samples at its start that the encoder added and no header reports.
    priming: int
    #: Seconds of each packet if all have the same length, else 0.
    packet: float


@dataclass(frozen=True)
class Cut:
    """The used part of a sound file."""

    #: Its begin in the file, and its length, in seconds.
    start: float
    seconds: float
    #: Number of the channel, from 1; None: all channels, mixed.
    channel: int | None
    links: tuple[Link, ...]
    #: The request's values, by the name of the speaker's field; part of the video's provenance.
    asked: tuple[tuple[str, float | int], ...] = ()
