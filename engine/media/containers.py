"""Open media files for reading: sounds, videos and recordings in any container that FFmpeg supports."""

from __future__ import annotations

import io
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import av

#: Begin of an Ogg page that starts a logical stream, and the length of a page header without its segment table.
_BEGINS, _HEADER = 0x02, 27
#: Begin of a native FLAC file with its STREAMINFO block of 34 bytes; the highest bit marks the last block.
_FLAC = (b"fLaC\x00\x00\x00\x22", b"fLaC\x80\x00\x00\x22")
#: Most links that are opened separately; the last one then contains the rest.
_MOST_LINKS = 1_000
#: The size in a RIFF header whose writer did not know it.
_UNKNOWN = (0, 0xFFFFFFFF)


@contextmanager
def open_input(path: Path, part: tuple[int, int] | None = None) -> Iterator[av.container.InputContainer]:
    """Open a media file for reading; `part` is (first byte, byte after the last); None: the whole file.

    Tags that are not UTF-8 are ignored. FFmpeg gets the open file, not its name: it would read "%03d" in a name as a
    pattern, and a playlist could make it open other files or addresses. Raises av.FFmpegError and OSError.
    """
    with path.open("rb") as file:
        source: BinaryIO = file if part is None else io.BufferedReader(_Part(file, *part))
        options = {"protocol_whitelist": "none"}
        with av.open(source, "r", options=options, metadata_errors="ignore") as container:
            yield container


def find_links(path: Path) -> tuple[tuple[int, int], ...]:
    """Return (first byte, byte after the last) of each link: files of one format appended to each other in `path`.

    For example `cat a.ogg b.ogg`, chained Ogg streams (RFC 3533, section 4), and concatenated FLAC or WAV files. FFmpeg
    would use the first header for all of them. Other formats, and a single file, are one link.
    """
    size = path.stat().st_size
    if size < _HEADER:
        return ((0, size),)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        magic = content[:4]
        if magic == b"OggS":
            starts = _ogg_links(content)
        elif magic == b"fLaC":
            starts = _flac_links(content)
        elif magic == b"RIFF":
            starts = _riff_links(content)
        else:
            starts = [0]
    starts = starts[:_MOST_LINKS]
    return tuple(zip(starts, [*starts[1:], size], strict=True))


def _ogg_links(content: mmap.mmap) -> list[int]:
    starts = [0]
    # The streams of one link begin in pages before all other pages.
    beginning, place = True, 0
    while 0 <= place <= len(content) - _HEADER and len(starts) <= _MOST_LINKS:
        if content[place : place + 4] != b"OggS":
            place = content.find(b"OggS", place)
            continue
        begins = bool(content[place + 5] & _BEGINS)
        if begins and not beginning:
            starts.append(place)
        beginning = begins
        segments = content[place + 26]
        place += _HEADER + segments + sum(content[place + _HEADER : place + _HEADER + segments])
    return starts


def _flac_links(content: mmap.mmap) -> list[int]:
    starts = [0]
    for mark in _FLAC:
        place = content.find(mark, 1)
        while place > 0 and len(starts) <= _MOST_LINKS:
            starts.append(place)
            place = content.find(mark, place + 1)
    return sorted(starts)


def _riff_links(content: mmap.mmap) -> list[int]:
    starts, place = [0], 0
    while len(starts) <= _MOST_LINKS:
        size = int.from_bytes(content[place + 4 : place + 8], "little")
        place += 8 + size + size % 2
        head = content[place : place + 12]
        if size in _UNKNOWN or head[:4] != b"RIFF" or head[8:] != b"WAVE":
            break
        starts.append(place)
    return starts


class _Part(io.RawIOBase):
    """Bytes `first` to `last` of an open file as a separate file."""

    def __init__(self, file: BinaryIO, first: int, last: int) -> None:
        self._file, self._first, self._size = file, first, last - first
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence])
        return self._place

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        self._file.seek(self._first + self._place)
        content = self._file.read(max(0, min(len(buffer), self._size - self._place)))
        buffer[: len(content)] = content
        self._place += len(content)
        return len(content)
