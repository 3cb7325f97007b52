"""Pictures -> H.264 packets, segment by segment: each can be decoded, kept and delivered without the others."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
from av.codec.context import Flags
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

from engine.media.audio import SOUND_RATE
from engine.media.h264 import X264_PARAMS, open_file, set_format

#: Audio samples encoded at a time.
_CHUNK = SOUND_RATE
#: Samples of an AAC packet; decoders return whole packets.
_PACKET = 1024


@dataclass(frozen=True)
class Packet:
    """The coded data of a picture, or of a piece of sound."""

    data: bytes
    #: Time of presentation, time of decoding and duration: frames for a picture, samples for sound.
    pts: int
    dts: int
    duration: int
    #: Whether decoding can start here.
    key: bool


@dataclass(frozen=True)
class Segment:
    """A part of a video: all pictures of one window, and the sound that is ready by then."""

    #: Number of the segment, from 0; its first frame in the video, and how many frames it has: 0 or more.
    index: int
    first: int
    frames: int
    #: A closed group of pictures, which starts with a key frame.
    pictures: tuple[Packet, ...]
    #: It may end up to two packets (43 ms) before the pictures do, except in the last segment.
    sound: tuple[Packet, ...]


class PictureEncoder:
    """Encodes pictures with x264, and starts anew with each segment, so that no segment depends on another one.

    The bytes of a segment depend on its pictures, the settings and the versions of the libraries only.
    """

    def __init__(self, size: tuple[int, int], rate: Fraction, settings: Mapping[str, str]) -> None:
        """Encode pictures of `size` (width, height). Raises av.ArgumentError for settings that x264 rejects."""
        self._size, self._rate, self._settings = size, rate, dict(settings)
        self._reformatter = VideoReformatter()
        #: Checks the settings, and encodes the first segment.
        self._context: av.VideoCodecContext | None = self._open()
        self._delay = delay_of(self._context)
        self._count = 0
        self._packets: list[av.Packet[av.VideoStream]] = []

    @property
    def frames(self) -> int:
        """How many frames of the open segment were added."""
        return self._count

    def add(self, picture: npt.NDArray[np.uint8]) -> None:
        """Encode a picture, uint8 RGB (height, width, 3). Raises av.FFmpegError."""
        frame = self._reformatter.reformat(
            av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24"),
            format="yuv420p",
            dst_colorspace=Colorspace.ITU709,
            src_color_range=ColorRange.JPEG,
            dst_color_range=ColorRange.MPEG,
            interpolation=Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.BITEXACT,
            threads=1,
        )
        frame.pts = self._count
        frame.time_base = 1 / self._rate
        if self._context is None:
            self._context = self._open()
        self._packets += self._context.encode(frame)
        self._count += 1

    def end(self, first: int) -> tuple[Packet, ...]:
        """End the segment, whose first frame is number `first` of the video. Raises av.FFmpegError."""
        if self._context is None or not self._count:
            return ()
        coded = [*self._packets, *self._context.encode(None)]
        self._packets, self._count, self._context = [], 0, None
        # x264 does not delay the packets of a very short segment. Counted here, their times fit behind those before.
        return tuple(
            Packet(bytes(packet), first + (packet.pts or 0), first + number - self._delay, 1, packet.is_keyframe)
            for number, packet in enumerate(coded)
        )

    def _open(self) -> av.VideoCodecContext:
        context = av.CodecContext.create("libx264", "w")
        context.options = {**self._settings, "x264-params": X264_PARAMS}
        context.framerate = self._rate
        set_format(context, self._size, self._rate)
        context.flags |= Flags.global_header
        context.open()
        return context


class SoundEncoder:
    """Encodes a sound track as AAC, piece by piece."""

    def __init__(self, sound: npt.NDArray[np.float32] | None, rate: Fraction, bitrate: int) -> None:
        """Encode `sound`, float32 stereo 48 kHz (samples, 2), for pictures at `rate`. Raises av.ArgumentError."""
        self._sound = np.zeros((0, 2), np.float32) if sound is None else sound
        self._rate = rate
        self._samples = 0
        self._context = av.CodecContext.create("aac", "w")
        self._context.sample_rate = SOUND_RATE
        self._context.layout = "stereo"
        self._context.format = "fltp"
        self._context.time_base = Fraction(1, SOUND_RATE)
        _set_bitrate(self._context, bitrate)
        self._context.flags |= Flags.global_header
        self._context.open()

    def until(self, frames: int, *, last: bool = False) -> tuple[Packet, ...]:
        """Return the next packets, of the sound up to the end of `frames` frames; silence follows the sound.

        Only whole packets are encoded, until the `last` call. Raises av.FFmpegError.
        """
        end = round(frames / self._rate * SOUND_RATE)
        # The last packet is padded with silence. If a packet is longer than a frame, less than half a packet (11 ms) is
        # dropped instead: sound and pictures then end within one frame of each other, up to 93 frames per second.
        whole = not last or (self._rate * _PACKET > SOUND_RATE and end % _PACKET < _PACKET // 2)
        coded = self._encode(end - end % _PACKET if whole else end)
        if last:
            coded += self._context.encode(None)
        return tuple(Packet(bytes(one), one.pts or 0, one.dts or 0, one.duration or 0, True) for one in coded)

    def _encode(self, until: int) -> list[av.Packet[av.AudioStream]]:
        coded = []
        while self._samples < until:
            count = min(until - self._samples, _CHUNK)
            part = np.zeros((count, 2), np.float32)
            samples = self._sound[self._samples : self._samples + count]
            part[: len(samples)] = samples
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(part.T), format="fltp", layout="stereo")
            frame.sample_rate = SOUND_RATE
            frame.pts = self._samples
            frame.time_base = Fraction(1, SOUND_RATE)
            self._samples += count
            coded += self._context.encode(frame)
        return coded


def add_sound(container: av.container.OutputContainer, bitrate: int) -> av.AudioStream:
    """Add a stream for the packets of a SoundEncoder."""
    audio = container.add_stream("aac", rate=SOUND_RATE, layout="stereo")
    _set_bitrate(audio.codec_context, bitrate)
    return audio


def _set_bitrate(context: av.AudioCodecContext, bitrate: int) -> None:
    context.bit_rate = bitrate
    context.flags |= Flags.bitexact


def delay_of(context: av.VideoCodecContext) -> int:
    """Return by how many frames packets are decoded ahead of their presentation: x264 keeps one B-frame to refer to."""
    return 2 if context.has_b_frames else 0


def mux(
    container: av.container.OutputContainer,
    video: av.VideoStream,
    audio: av.AudioStream,
    rate: Fraction,
    segments: Iterable[Segment],
    *,
    later: tuple[int, int] = (0, 0),
) -> None:
    """Write the packets of segments of pictures at `rate`, by their decode times. Raises av.FFmpegError and OSError.

    `later` are the frames and the samples by which all times are later.
    """
    pictures, sound = (video, 1 / rate, later[0]), (audio, Fraction(1, SOUND_RATE), later[1])
    packets: list[tuple[Packet, tuple[av.VideoStream | av.AudioStream, Fraction, int]]] = []
    for segment in segments:
        packets += [(one, pictures) for one in segment.pictures]
        packets += [(one, sound) for one in segment.sound]
    for one, (stream, base, shift) in sorted(packets, key=lambda entry: entry[0].dts * entry[1][1]):
        packet = av.Packet(one.data)
        packet.stream, packet.time_base = stream, base
        packet.pts, packet.dts, packet.duration = one.pts + shift, one.dts + shift, one.duration
        packet.is_keyframe = one.key
        container.mux(packet)


class Spool:
    """Segments in a file, in order, so that a long video needs no memory."""

    def __init__(self, path: Path) -> None:
        """Open a new file at `path`. Raises OSError."""
        self._path = path
        self._file = open_file(path)
        self._sizes: list[int] = []

    def add(self, segment: Segment) -> None:
        """Append a segment. Raises OSError."""
        content = dump(segment)
        self._file.write(content)
        self._sizes.append(len(content))

    def __iter__(self) -> Iterator[Segment]:
        """Read the segments. Raises OSError."""
        self._file.seek(0)
        for size in self._sizes:
            yield load(self._file.read(size))

    def remove(self) -> None:
        """Close and remove the file."""
        self._file.close()
        self._path.unlink(missing_ok=True)


def dump(segment: Segment) -> bytes:
    """Return a segment as bytes: a line of JSON, then the packets' data."""
    tracks = (segment.pictures, segment.sound)
    head = {
        "segment": [segment.index, segment.first, segment.frames],
        "tracks": [[[len(p.data), p.pts, p.dts, p.duration, p.key] for p in track] for track in tracks],
    }
    return b"".join([json.dumps(head).encode(), b"\n", *(p.data for track in tracks for p in track)])


def load(content: bytes) -> Segment:
    """Return the segment that `dump` wrote. Raises ValueError for anything else."""
    line, _, data = content.partition(b"\n")
    try:
        head = json.loads(line)
        index, first, frames = head["segment"]
        pictures, sound = head["tracks"]
        ends = np.cumsum([row[0] for row in (*pictures, *sound)], dtype=np.int64).tolist()
        if (ends[-1] if ends else 0) != len(data):
            raise ValueError(f"{len(data)} bytes of packets, not {ends[-1] if ends else 0}")
        parts = [data[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]
        packets = [_packet(part, row) for part, row in zip(parts, (*pictures, *sound), strict=True)]
    except (KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise ValueError("not a segment") from error
    return Segment(index, first, frames, tuple(packets[: len(pictures)]), tuple(packets[len(pictures) :]))


def _packet(data: bytes, row: Sequence[int]) -> Packet:
    _, pts, dts, duration, key = row
    return Packet(data, pts, dts, duration, bool(key))
