"""A video that is published while it is made, and small pictures of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

#: Name of the playlist, and its media type.
PLAYLIST = "index.m3u8"
PLAYLIST_TYPE = "application/vnd.apple.mpegurl"


class LiveFolder(Protocol):
    """The place of one published video: a playlist, and the parts that it names."""

    @property
    def address(self) -> str:
        """Path or URL of the playlist. It is also valid before the playlist is written."""
        ...

    def part(self, name: str, content: bytes, media_type: str) -> str:
        """Store a part, which never changes, and return its address in the playlist: a relative name or a URL.

        Raises SinkError and Cancelled.
        """
        ...

    def playlist(self, text: str) -> None:
        """Store the playlist in place of the one before. A reader sees one of the two. Raises SinkError."""
        ...

    def remove(self) -> None:
        """Remove the playlist and all parts. Raises SinkError."""
        ...


@dataclass(frozen=True)
class LivePart:
    """A published part of a video."""

    #: Path or URL, or a name relative to the playlist. No repr shows it: a presigned URL is a secret.
    address: str = field(repr=False)
    #: Its begin in the video and its length, in seconds, as it is published: to the microsecond.
    begins: float
    seconds: float


@dataclass(frozen=True)
class Live:
    """The published part of a video that is being made."""

    #: Path or URL of the HLS playlist. No repr shows it: a presigned URL is a secret.
    address: str = field(repr=False)
    parts: tuple[LivePart, ...] = ()
    #: Whether no part will follow.
    ended: bool = False

    @property
    def seconds(self) -> float:
        """Return the length of all parts, to the microsecond."""
        return round(self.parts[-1].begins + self.parts[-1].seconds, 6) if self.parts else 0.0


@dataclass(frozen=True)
class Preview:
    """A small strip of frames of a window, side by side, from the first to the last."""

    #: JPEG.
    content: bytes = field(repr=False)
    #: Number of frames in the strip.
    frames: int
    #: Counted from 1.
    window: int
    #: Number of the step, from 1, whose prediction it shows; 0: finished frames.
    step: int = 0
