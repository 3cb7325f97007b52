"""Decode the needed part of a file's audio track, with positions on the file's own clock."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

from engine.components import CancelToken
from engine.data import Link
from engine.errors import Cancelled, RequestError
from engine.media.clock import Clock, kind_of
from engine.media.containers import open_input
from engine.media.packets import facts_of, head_of, only, packet_seconds, packets_of, pcm_bytes

Samples = npt.NDArray[np.float32]

HINT = "give a WAV, MP3, FLAC, M4A, Ogg or video file with a voice in it"
#: Above this share of damaged packets the sound is refused.
MOST_DAMAGED = 0.5
#: Seconds that are decoded before the needed part, so that decoders are in sync with the stream.
_BEFORE = 1.0
#: Larger samples are refused; float samples in the scale of 32-bit integers are accepted.
_LOUDEST = 1e10
#: Least number of packets decoded for that; an MP3 frame's data may begin up to eight packets earlier.
_WARMING = 8
#: Samples in one block.
_BLOCK = 1 << 15
#: Tolerance in seconds when floating-point sums are compared.
_TINY = 1e-9
#: Most damaged places that are kept for the warning.
_PLACES = 1_000


@dataclass
class Damage:
    """What could not be decoded."""

    #: All packets, decoded or not.
    packets: int = 0
    bad: int = 0
    #: Positions of the first bad packets, seconds of the file.
    places: list[float] = field(default_factory=list)

    def note(self, place: float) -> None:
        """Count a bad packet at `place`."""
        self.bad += 1
        if len(self.places) < _PLACES:
            self.places.append(place)

    def warnings(self) -> list[str]:
        """Return the warnings about damaged packets."""
        if not self.bad:
            return []
        if self.bad <= 3:
            *most, last = (f"{place:.2f}" for place in self.places)
            where = f"at {', '.join(most)} and {last} s" if most else f"at {last} s"
        else:
            where = f"the first at {self.places[0]:.2f} s, the last at {self.places[-1]:.2f} s of the file"
        verb = "is" if self.bad == 1 else "are"
        return [f"{self.bad} of {self.packets} packets of the sound {verb} damaged and left out, {where}"]


@dataclass(frozen=True)
class Piece:
    """Consecutive samples on the file's clock: float32 (samples, channels)."""

    #: Position of the first sample, seconds of the file, and sample rate in Hz.
    time: float
    rate: int
    #: All channels, and the channels mixed to at most two.
    raw: Samples
    mixed: Samples
    #: Whether there is a gap between it and the piece before.
    apart: bool


def pieces(
    path: Path,
    links: Sequence[Link],
    *,
    start: float,
    until: float,
    damage: Damage,
    field: str,
    cancel: CancelToken | None = None,
) -> Iterator[Piece]:
    """Decode the file from second `start` to `until`, with slightly more at both ends, in blocks.

    Packets that cannot be decoded are left out and recorded in `damage`. Raises RequestError about `field` if more than
    `MOST_DAMAGED` are damaged and for samples that are not finite, and Cancelled.
    """
    several = len(links) > 1 or links[0].part[0] > 0
    with reading(path, field):
        for link in links:
            if link.at + link.seconds <= start:
                continue
            if link.at >= until:
                break
            with open_input(path, link.part if several else None) as container:
                yield from _checked(_batched(_Decoding(container, link, start, until, damage, cancel).walk()), field)
        if damage.bad > MOST_DAMAGED * damage.packets:
            raise RequestError(
                f"{damage.bad} of {damage.packets} packets of the audio are damaged",
                field=field,
                hint=HINT,
                code="audio_unreadable",
            )


@contextmanager
def reading(path: Path, field: str) -> Iterator[None]:
    """Turn errors of FFmpeg and the file system about `path` into a RequestError about `field`."""
    try:
        if path.stat().st_size == 0:
            raise RequestError("the audio file is empty (0 bytes)", field=field, hint=HINT, code="audio_empty")
        yield
    except (av.FFmpegError, OSError, ValueError, EOFError) as error:
        reason = getattr(error, "strerror", None) or error
        at_end = isinstance(error, EOFError)
        what = f"the audio cannot be decoded: {'it ends before any sound' if at_end else reason}"
        raise RequestError(what, field=field, hint=HINT, code="audio_unreadable") from error


def check(cancel: CancelToken | None) -> None:
    """Raise Cancelled if the caller cancelled the request."""
    if cancel is not None and cancel.is_set():
        raise Cancelled("read")


# --- decoding ---------------------------------------------------------------------------------------------------------


class _Decoding:
    def __init__(
        self,
        container: av.container.InputContainer,
        link: Link,
        start: float,
        until: float,
        damage: Damage,
        cancel: CancelToken | None,
    ) -> None:
        self._container, self._link, self._start, self._until = container, link, start, until
        self._damage, self._cancel = damage, cancel
        self._stream = container.streams.audio[0]
        for stream in container.streams.audio:
            if stream.index == link.stream:
                self._stream = stream
        self._clock = Clock(link.at, link.zero, kind_of(container))
        self._drop = link.priming
        self._mixer = _Mixer()

    def walk(self) -> Iterator[Piece]:
        stream, clock = self._stream, self._clock
        only(self._container, stream)
        if stream.codec_context.name == "flac":
            # FLAC frames have checksums, which FFmpeg checks only on request.
            stream.codec_context.options = {"err_detect": "crccheck+explode"}
        skipping = self._start > self._link.at + _BEFORE
        passed: deque[av.Packet[av.AudioStream]] = deque(maxlen=_WARMING)
        for packet in packets_of(self._container, stream, []):
            check(self._cancel)
            seconds, exact = self._seconds(packet)
            if skipping and packet.size and packet.pts is not None and seconds:
                if clock.where(float(packet.pts * packet.time_base)) + seconds <= self._start - _BEFORE:
                    self._pass(packet, seconds, exact=exact)
                    passed.append(packet)
                    continue
                skipping = False
                self._warm(passed)
            try:
                frames = packet.decode()
            except av.FFmpegError:
                frames = []
                self._hurt(packet, seconds)
            if packet.size:
                self._damage.packets += clock.end >= self._start
            for frame in frames:
                yield from self._pieces(frame)
            if clock.end >= self._until:
                return

    def _pass(self, packet: av.Packet[av.AudioStream], seconds: float, *, exact: bool) -> None:
        """Move the clock past a packet that is not decoded, without samples from before the beginning of the file."""
        stamp, rate = float((packet.pts or 0) * packet.time_base), self._stream.rate or 1
        self._drop = max(self._drop, facts_of(packet).skip)
        dropped = min(self._drop / rate, seconds)
        self._drop -= round(dropped * rate)
        if seconds - dropped > _TINY:
            self._clock.place(stamp + dropped, seconds - dropped, exact=exact)

    def _warm(self, passed: Iterable[av.Packet[av.AudioStream]]) -> None:
        """Decode packets before the needed part, so that the decoder is in sync, even after a gap."""
        for packet in passed:
            with suppress(av.FFmpegError):
                packet.decode()

    def _seconds(self, packet: av.Packet[av.AudioStream]) -> tuple[float, bool]:
        """Return the seconds of a packet, and whether they are exact."""
        codec, rate = self._stream.codec_context, self._stream.rate or 1
        seconds = packet_seconds(codec.codec.canonical_name, head_of(packet), rate) or self._link.packet
        if not seconds and (size := pcm_bytes(codec)):
            seconds = packet.size // size / rate
        return seconds or float((packet.duration or 0) * packet.time_base), bool(seconds)

    def _hurt(self, packet: av.Packet[av.AudioStream], seconds: float) -> None:
        if packet.size:
            stamp = None if packet.pts is None else float(packet.pts * packet.time_base)
            if (place := self._clock.where(stamp)) >= self._start:
                self._damage.note(place)
            self._clock.lose(seconds)

    def _pieces(self, frame: av.AudioFrame) -> Iterator[Piece]:
        if not frame.samples or not frame.sample_rate:
            return
        if frame.is_corrupt and self._clock.end >= self._start:
            self._damage.note(self._clock.end)
        raw, mixed = self._mixer.take(frame)
        drop, self._drop = min(self._drop, len(raw)), max(0, self._drop - len(raw))
        if drop:
            raw, mixed = raw[drop:], mixed[drop:]
        if not len(raw):
            return
        rate = frame.sample_rate
        stamp = None
        if frame.pts is not None and frame.time_base is not None:
            stamp = float(frame.pts * frame.time_base) + drop / rate
        time, apart = self._clock.place(stamp, len(raw) / rate)
        yield Piece(time, rate, raw, mixed, apart)


class _Mixer:
    """Converts frames of any format to float32 samples: all channels, and mixed to at most two."""

    def __init__(self) -> None:
        self._resamplers: dict[tuple[str, str, int, bool], av.AudioResampler] = {}

    def take(self, frame: av.AudioFrame) -> tuple[Samples, Samples]:
        """Return all channels (samples, channels) and the mix (samples, 1 or 2).

        A mono file stays mono: libswresample would lower it by 3 dB when converting to stereo. More than two channels
        are mixed by its standard matrix.
        """
        raw = self._plain(frame)
        if raw.shape[1] <= 2:
            return raw, raw
        try:
            return raw, self._resampled(frame, "stereo", 2)
        except av.FFmpegError:
            # libswresample does not know this layout.
            return raw, np.repeat(raw.mean(axis=1, dtype=np.float32, keepdims=True), 2, axis=1)

    def _plain(self, frame: av.AudioFrame) -> Samples:
        channels = frame.layout.nb_channels
        if frame.format.name not in _SCALES:
            return self._resampled(frame, frame.layout.name, channels)
        values = frame.to_ndarray()
        values = values.T if frame.format.is_planar else values.reshape(-1, channels)
        zero, scale = _SCALES[frame.format.name]
        if scale == 1:
            return np.ascontiguousarray(values, np.float32)
        return (values.astype(np.float32) - np.float32(zero)) * np.float32(1 / scale)

    def _resampled(self, frame: av.AudioFrame, layout: str, channels: int) -> Samples:
        # A new resampler whenever the format changes.
        key = (frame.format.name, frame.layout.name, frame.sample_rate, layout == "stereo")
        if key not in self._resamplers:
            self._resamplers = {
                key: av.AudioResampler(format="flt", layout=layout, rate=frame.sample_rate),
            }
        parts = self._resamplers[key].resample(frame)
        return np.concatenate([part.to_ndarray().reshape(-1, channels) for part in parts]).astype(
            np.float32, copy=False
        )


#: Sample format -> value of zero, and value of full scale.
_SCALES = {
    **{
        name + end: (zero, scale)
        for name, zero, scale in (("u8", 128, 2**7), ("s16", 0, 2**15), ("s32", 0, 2**31))
        for end in ("", "p")
    },
    **dict.fromkeys(("flt", "fltp", "dbl", "dblp"), (0, 1)),
}


def _batched(blocks: Iterator[Piece]) -> Iterator[Piece]:
    """Join consecutive pieces to larger blocks."""
    row: list[Piece] = []
    length = 0
    for piece in blocks:
        if row and (piece.apart or piece.rate != row[0].rate or piece.raw.shape[1] != row[0].raw.shape[1]):
            yield _joined(row)
            row, length = [], 0
        row.append(piece)
        length += len(piece.raw)
        if length >= _BLOCK:
            yield _joined(row)
            row, length = [], 0
    if row:
        yield _joined(row)


def _joined(row: Sequence[Piece]) -> Piece:
    if len(row) == 1:
        return row[0]
    raw = np.concatenate([piece.raw for piece in row])
    mixed = raw if raw.shape[1] <= 2 else np.concatenate([piece.mixed for piece in row])
    return replace(row[0], raw=raw, mixed=mixed)


def _checked(blocks: Iterator[Piece], field: str) -> Iterator[Piece]:
    for piece in blocks:
        peak = float(np.abs(piece.raw).max(initial=0.0))
        if not peak <= _LOUDEST:
            what = "the audio holds samples that are not finite"
            if math.isfinite(peak):
                what = f"the audio holds samples of {peak:.0e}, where 1 is full scale"
            raise RequestError(what, field=field, hint=HINT, code="audio_unreadable")
        yield piece
