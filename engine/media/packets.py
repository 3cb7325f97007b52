"""The packets of an audio track: their own data, and how long they are."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import av
from av.stream import Discard

from engine.media.clock import STAMPED, kind_of

#: Codec -> samples that its usual encoder adds in front, for containers that do not store this: FFmpeg's and most other
#: AAC encoders (one packet, which never holds complete sound), LAME with its decoder's delay, libopus at 48 kHz.
_PRIMING = {"aac": 1024, "mp3": 1105, "opus": 312}
#: Codecs whose packets all have the same length.
_EVEN = ("aac", "mp3", "mp2", "ac3", "eac3")
#: How often reading a container is tried again after an error.
_RETRIES = 16
#: Bytes at the start of a packet that are used for its header.
_HEAD = 16


@dataclass(frozen=True)
class PacketFacts:
    """Data of a packet: seconds, bytes, and samples to skip at its start and drop at its end."""

    stamp: float | None
    seconds: float
    size: int
    #: Its first bytes.
    head: bytes
    skip: int
    drop: int
    discard: bool


def facts_of(packet: av.Packet[av.AudioStream]) -> PacketFacts:
    base = packet.time_base
    skip = drop = 0
    if packet.has_sidedata("skip_samples"):
        with suppress(struct.error):
            skip, drop = struct.unpack_from("<II", bytes(packet.get_sidedata("skip_samples")))
    return PacketFacts(
        stamp=None if packet.pts is None else float(packet.pts * base),
        seconds=float((packet.duration or 0) * base),
        size=packet.size,
        head=head_of(packet),
        skip=skip,
        drop=drop,
        discard=packet.is_discard,
    )


class PacketLengths:
    """How long the packets of a stream are, without the samples that must not be heard."""

    def __init__(
        self, stream: av.AudioStream, before: Sequence[PacketFacts], frame: av.AudioFrame, *, sound: bool
    ) -> None:
        """`before` are the packets up to the one that gave the first `frame`; `sound`: none of them is damaged."""
        codec = stream.codec_context
        name = codec.codec.canonical_name
        self.rate = frame.sample_rate
        #: Seconds of every packet if all have the same length, else 0.
        self.even = 0.0
        kind = kind_of(stream.container)  # type: ignore[arg-type]
        start = next((facts for facts in before if facts.stamp is not None), before[0])
        trimmed = (
            any(facts.skip or facts.discard for facts in before)
            or (sound and len([facts for facts in before if facts.size]) > 1)
            or (frame.pts is not None and start.stamp is not None and _stamp(frame, start.stamp) > start.stamp + 1e-3)
        )
        #: Whether the first packet states what to skip.
        self.tagged = bool(before[0].skip)
        #: Samples in front that no header states.
        self.priming = 0 if trimmed else _priming(name, frame)
        #: Bytes of one sample of all channels; 0 if compressed.
        self.pcm = pcm_bytes(codec)
        self._codec = name
        if kind in STAMPED and name in _EVEN:
            self.even = _even(name, frame, trimmed=trimmed) / self.rate
        ticks = float(stream.time_base or 0)
        self.exact = bool(self.even or self.pcm or name in ("opus", "flac")) or kind not in STAMPED or ticks < 1 / 8000
        #: Seconds by which an end that is not exact may be rounded down.
        self.rounding = 0.0 if self.exact else ticks
        self._skip = sum(facts.skip for facts in before[:1]) or self.priming
        self._last_seconds = 0.0
        #: Container times of the first packet and of the first sound, seconds.
        self.first_packet = start.stamp or 0.0
        if trimmed and frame.pts is not None:
            self.first_sound = _stamp(frame, self.first_packet)
        else:
            self.first_sound = self.first_packet + self.priming / self.rate

    def of(self, facts: PacketFacts) -> tuple[float | None, float]:
        """Return the container time and the seconds of the audible part of a packet."""
        seconds = self._seconds(facts)
        if not facts.size:
            return None, 0.0
        if facts.discard and not facts.skip and not self._skip:
            return None, 0.0
        skipped = min(self._skip, round(seconds * self.rate))
        self._skip -= skipped
        stamp = None if facts.stamp is None else facts.stamp + skipped / self.rate
        rest = seconds - skipped / self.rate
        if facts.drop and rest > 0 and self._whole(facts):
            rest = max(0.0, rest - facts.drop / self.rate)
        return stamp, rest

    def _seconds(self, facts: PacketFacts) -> float:
        if seconds := packet_seconds(self._codec, facts.head, self.rate):
            return seconds
        if self.even:
            return self.even
        if self.pcm:
            return facts.size // self.pcm / self.rate
        self._last_seconds = facts.seconds or self._last_seconds
        return facts.seconds or self._last_seconds

    def _whole(self, facts: PacketFacts) -> bool:
        # The container may already have shortened the packet's own length.
        length = self.even or packet_seconds(self._codec, facts.head, self.rate)
        return bool(length) or facts.seconds * self.rate >= facts.drop


def head_of(packet: av.Packet[av.AudioStream]) -> bytes:
    """Return a packet's first bytes."""
    return bytes(memoryview(packet)[:_HEAD]) if packet.size else b""


def _stamp(frame: av.AudioFrame, default: float) -> float:
    return default if frame.pts is None or frame.time_base is None else float(frame.pts * frame.time_base)


def _priming(codec: str, frame: av.AudioFrame) -> int:
    if codec == "aac":
        # One packet; it has twice the samples if the upper band is synthesised (HE-AAC).
        return int(frame.samples)
    return round(_PRIMING[codec] * (frame.sample_rate / 48_000 if codec == "opus" else 1)) if codec in _PRIMING else 0


def _even(codec: str, frame: av.AudioFrame, *, trimmed: bool) -> int:
    if codec == "mp3":
        return 1152 if frame.sample_rate >= 32_000 else 576
    samples = {"mp2": 1152, "ac3": 1536}
    if codec in samples:
        return samples[codec]
    # A trimmed first frame does not tell the length of the others.
    if codec == "aac":
        return frame.samples if frame.samples in (960, 1920) else 1024 if frame.samples <= 1024 else 2048
    return 0 if trimmed else int(frame.samples)


def pcm_bytes(codec: av.AudioCodecContext) -> int:
    """Return the bytes of one sample of all channels; 0 if compressed."""
    bits = {"u8": 8, "s8": 8, "alaw": 8, "mulaw": 8}
    name = codec.name.removeprefix("pcm_")
    if not codec.name.startswith("pcm_"):
        return 0
    digits = "".join(character for character in name[1:] if character.isdigit())
    return codec.channels * (bits.get(name) or int(digits or 0)) // 8


def packet_seconds(codec: str, head: bytes, rate: int) -> float:
    """Return the seconds of a packet at `rate` Hz from its first bytes; 0 if they do not contain it.

    Containers round them, and FFmpeg keeps using the first packet's rate if the rate changes. Sources: RFC 6716,
    section 3.1 (Opus); RFC 9639, section 9.1 (FLAC); ISO/IEC 13818-7, 6.2 (ADTS); 11172-3, 2.4.2.3 and 13818-3 (MP3).
    """
    if codec == "opus" and len(head) >= 2:
        return _opus_seconds(head)
    if len(head) < 4 or head[0] != 0xFF:
        return 0.0
    if codec == "flac":
        return _flac_header(head)[1] / rate
    if codec == "aac" and head[1] & 0xF6 == 0xF0:
        index = head[2] >> 2 & 15
        return 1024 / _ADTS_RATES[index] if index < len(_ADTS_RATES) else 0.0
    if codec == "mp3" and head[1] & 0xE6 == 0xE2 and (index := head[2] >> 2 & 3) < 3:
        # MPEG 1, 2 and 2.5: rates are halved at each step, samples only at the first.
        half = {3: 1, 2: 2, 0: 4}.get(head[1] >> 3 & 3, 0)
        return 0.0 if not half else (1152 if half == 1 else 576) * half / (44_100, 48_000, 32_000)[index]
    return 0.0


def flac_place(packet: av.Packet[av.AudioStream], stream: av.AudioStream) -> int | None:
    """Return the index of a FLAC frame's first sample from its header; None if the header is damaged."""
    head, info = head_of(packet), stream.codec_context.extradata or b""
    number, _ = _flac_header(head)
    if number is None or len(info) < 2:
        return None
    # The number counts frames if all have one size, else samples.
    return number if head[1] & 1 else number * int.from_bytes(info[:2], "big")


def _flac_header(head: bytes) -> tuple[int | None, int]:
    """Return number and samples of a FLAC frame (RFC 9639, section 9.1); None and 0 if the header is damaged."""
    if len(head) < _HEAD or head[0] != 0xFF or head[1] & 0xFE != 0xF8:
        return None, 0
    # Encoded like a UTF-8 character, with up to seven bytes.
    ones = next((count for count in range(8) if not head[4] & 0x80 >> count), 8)
    following = head[5 : 4 + max(1, ones)]
    if ones in (1, 8) or any(byte & 0xC0 != 0x80 for byte in following):
        return None, 0
    number = head[4] & (0x7F >> ones)
    for byte in following:
        number = number << 6 | byte & 0x3F
    code, rest = head[2] >> 4, head[5 + len(following) :]
    if code in (6, 7):
        return number, int.from_bytes(rest[: code - 5], "big") + 1
    return number, 192 if code == 1 else 576 << code - 2 if 2 <= code <= 5 else 256 << code - 8 if code >= 8 else 0


_ADTS_RATES = (96_000, 88_200, 64_000, 48_000, 44_100, 32_000, 24_000, 22_050, 16_000, 12_000, 11_025, 8_000, 7_350)


def _opus_seconds(head: bytes) -> float:
    config, code = head[0] >> 3, head[0] & 3
    if config < 12:
        frame = (0.01, 0.02, 0.04, 0.06)[config % 4]
    elif config < 16:
        frame = (0.01, 0.02)[config % 2]
    else:
        frame = (0.0025, 0.005, 0.01, 0.02)[config % 4]
    count = 1 if code == 0 else 2 if code < 3 else head[1] & 63
    return frame * count


def packets_of(
    container: av.container.InputContainer, stream: av.AudioStream, failures: list[av.FFmpegError]
) -> Iterator[av.Packet[av.AudioStream]]:
    """Yield the packets of a stream, last the empty one that ends it; skip what the container cannot read."""
    row = 0
    numbered = kind_of(container) == "flac"
    while row <= _RETRIES:
        try:
            for packet in container.demux(stream):
                row = 0
                if numbered and packet.size and (place := flac_place(packet, stream)) is not None:
                    # FFmpeg counts readable frames, so sound after a damaged place would come too early.
                    packet.pts = packet.dts = place
                yield packet
            return
        except av.FFmpegError as error:
            row += 1
            failures.append(error)


def only(container: av.container.InputContainer, stream: av.AudioStream) -> None:
    # FFmpeg then does not read the pictures.
    for other in container.streams:
        if other.index != stream.index:
            other.discard = Discard.all
