"""Who speaks, what is taken of the file of a voice, and where it lies in that file."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Region:
    """Where a speaker sits in the source picture; neither `box` nor `mask` means: place them automatically."""

    #: [x0, y0, x1, y1], x to the right, y down; pixels of the upright source picture, or fractions if none exceeds 1.
    box: tuple[float, float, float, float] | None = None
    #: Address of a picture of the source picture's shape; bright pixels belong to the speaker.
    mask: str | None = None


@dataclass(frozen=True)
class Speaker:
    """One person of the picture: the address of their voice, or None for a person who stays silent."""

    #: May end in what is taken of the file, such as `call.wav#left` (engine/media/excerpts.py).
    audio: str | None
    region: Region = Region()
    #: Seconds into the file at which the voice begins, and seconds that are taken of it; None: all of it.
    start: float | None = None
    duration: float | None = None
    #: Seconds of silence before the voice in the video.
    delay: float | None = None
    #: Number of the audio track, from 1; None: the one that players take.
    track: int | None = None
    #: "left", "right" or the channel's number, from 1; None: all of them, mixed.
    channel: str | int | None = None


@dataclass(frozen=True)
class Link:
    """One stretch of a sound file that has a header of its own. Most files are one; `cat a.ogg b.ogg` makes two."""

    #: First byte, and the byte behind the last one.
    part: tuple[int, int]
    #: Index of the stream in the container.
    stream: int
    #: Seconds of the whole file at which the link begins, and its length.
    at: float
    seconds: float
    #: Where the container's clock stands at `at`, in seconds.
    zero: float
    #: Samples at its start that the encoder made and no header speaks of.
    priming: int
    #: Seconds of each packet where all have the same length, else 0.
    packet: float


@dataclass(frozen=True)
class Cut:
    """What is taken of a sound file."""

    #: Seconds into the file, and seconds that are there.
    start: float
    seconds: float
    #: From 1; None: all, mixed.
    channel: int | None
    links: tuple[Link, ...]
    #: The values in the request, by name of the speaker's field; part of the provenance.
    asked: tuple[tuple[str, float | int], ...] = ()
