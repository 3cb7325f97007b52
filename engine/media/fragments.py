"""Segments -> fragmented MP4, as HLS players read it: one init part, then one part for each segment."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import TYPE_CHECKING

import av

from engine.media.audio import SOUND_RATE
from engine.media.h264 import add_video
from engine.media.segments import Segment, add_sound, delay_of, mux

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

#: Samples by which the first AAC packet begins before the sound: the encoder's priming.
PRIMING = 1024
#: The decode time of a fragment is that of its packets, not the end of a fragment before, which the muxer has not seen.
_FLAGS = "empty_moov+default_base_moof+frag_custom+frag_discont"


class Fragmenter:
    """Makes parts of fragmented MP4 from the packets of segments; nothing is encoded again.

    Pictures and sound are in the same parts. A part begins with a key frame, and its decode times continue those of the
    part before. Sound that a segment lacks at its end is in the next part. The bytes depend on the segment only.
    """

    def __init__(self, size: tuple[int, int], rate: Fraction, x264: Mapping[str, str], audio_bitrate: int) -> None:
        """Make parts for pictures of `size` (width, height) at `rate`, encoded with the settings of the segments."""
        self._size, self._rate = size, rate
        self._x264, self._audio_bitrate = dict(x264), audio_bitrate
        #: Frames by which packets are decoded ahead of their presentation.
        self._delay = 0
        init = b"".join(box for name, box in _boxes(self._mux(())) if name in (b"ftyp", b"moov"))
        #: ftyp and moov: what a player needs before the first part. No decode time may be below 0, so all times are
        #: later in the parts, and the edit lists of the init part take this back.
        self.init = _with_edits(init, {b"vmhd": self._delay / rate, b"smhd": Fraction(PRIMING, SOUND_RATE)})

    def part(self, number: int, *segments: Segment) -> bytes:
        """Return the part, number `number` from 0, of consecutive segments: moof and mdat. Raises av.FFmpegError."""
        return b"".join(box for name, box in _boxes(self._mux(segments, number)) if name in (b"moof", b"mdat"))

    def _mux(self, segments: tuple[Segment, ...], number: int = 0) -> bytes:
        file = _Sequential()
        options = {"movflags": _FLAGS, "fflags": "+bitexact", "fragment_index": str(number + 1)}
        # FFmpeg's own edit lists would be those of a file with this part only.
        options |= {"use_editlist": "0", "avoid_negative_ts": "disabled"}
        with av.open(file, "w", format="mp4", options=options) as container:
            video = add_video(container, self._size, self._rate, self._x264)
            audio = add_sound(container, self._audio_bitrate)
            container.start_encoding()
            self._delay = delay_of(video.codec_context)
            mux(container, video, audio, self._rate, segments, later=(self._delay, PRIMING))
        return bytes(file.content)


class _Sequential(io.RawIOBase):
    """A file that cannot be sought in, so that FFmpeg writes each box once."""

    def __init__(self) -> None:
        self.content = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: ReadableBuffer, /) -> int:
        self.content += memoryview(data)
        return memoryview(data).nbytes


def _boxes(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield name and bytes of each box; FFmpeg writes no 64-bit sizes here."""
    start = 0
    while start < len(content):
        size, name = struct.unpack_from(">I4s", content, start)
        if size < 8:
            raise ValueError(f"a box {name!r} of {size} bytes")
        yield name, content[start : start + size]
        start += size


def _box(name: bytes, *parts: bytes) -> bytes:
    content = b"".join(parts)
    return struct.pack(">I4s", 8 + len(content), name) + content


def _with_edits(init: bytes, skipped: Mapping[bytes, Fraction]) -> bytes:
    """Return the init part with an edit list (ISO 14496-12, 8.6.6) in each track: presentation begins at time 0.

    `skipped` are the seconds before that, by the name of the box that only a track of this kind has.
    """

    def edited(track: bytes) -> bytes:
        inner = list(_boxes(track[8:]))
        seconds = next(value for name, value in skipped.items() if name in track)
        # mdhd version 0: 8 bytes of header, 4 of version and flags, 8 of dates.
        scale = struct.unpack_from(">I", track, track.index(b"mdhd") + 16)[0]
        # One entry of unlimited duration, at normal speed.
        entry = struct.pack(">IIIihh", 0, 1, 0, round(seconds * scale), 1, 0)
        # Behind tkhd, where the standard's order has it.
        return _box(b"trak", inner[0][1], _box(b"edts", _box(b"elst", entry)), *(box for _, box in inner[1:]))

    return b"".join(
        _box(name, *(edited(part) if kind == b"trak" else part for kind, part in _boxes(box[8:])))
        if name == b"moov"
        else box
        for name, box in _boxes(init)
    )
