"""Makes sound files of many containers and codecs for the tests."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.float32]

FRAGMENTED = {"movflags": "frag_keyframe+empty_moov"}


def tone(seconds: float, rate: int, hertz: float = 440.0, level: float = 0.5) -> Samples:
    """Return (samples,) of a sine."""
    return (level * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def click(seconds: float, rate: int, at: float) -> Samples:
    """Return (samples,) of silence with a short burst that begins `at` some seconds."""
    found = np.zeros(round(seconds * rate), np.float32)
    first = round(at * rate)
    found[first : first + rate // 100] = tone(0.01, rate, 1000)
    return found


def write(
    path: Path,
    codec: str,
    *tracks: Samples,
    rate: int = 48_000,
    layout: str = "",
    options: dict[str, str] | None = None,
    container: str | None = None,
    offset: float = 0.0,
    gap: tuple[float, float] | None = None,
    picture: float | None = None,
    default: int | None = None,
    tags: dict[str, str] | None = None,
) -> Path:
    """Write `tracks`, (samples,) or (samples, channels) each.

    `offset` seconds are added to all timestamps of the sound; `gap` (at, seconds): to those from `at` on. `picture` are
    the seconds of a video track beside it. `default`: the only track that is flagged so.
    """
    with av.open(str(path), "w", format=container, options=options or {}) as file:
        file.metadata.update(tags or {})
        packets: list[av.Packet] = []  # type: ignore[type-arg]
        video = None if picture is None else file.add_stream("libx264", rate=25)
        if video is not None:
            video.width = video.height = 32
        streams = []
        for number, samples in enumerate(tracks):
            shape = layout or ("mono" if samples.ndim == 1 else "stereo")
            stream = file.add_stream(codec, rate=rate, layout=shape)
            assert isinstance(stream, av.AudioStream)
            if default is not None:
                stream.disposition = av.stream.Disposition.default if number == default else av.stream.Disposition(0)
            streams.append((stream, shape, samples))
        if video is not None:
            for number in range(round((picture or 0) * 25)):
                frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
                frame.pts = number
                packets += video.encode(frame)
            packets += video.encode(None)
        for stream, shape, samples in streams:
            step = rate // 10
            made: list[av.Packet] = []  # type: ignore[type-arg]
            for first in range(0, len(samples), step):
                flat = np.ascontiguousarray(samples[first : first + step].reshape(1, -1))
                sound = av.AudioFrame.from_ndarray(flat, format="flt", layout=shape)
                sound.sample_rate, sound.pts = rate, first
                made += stream.encode(sound)
            for packet in [*made, *stream.encode(None)]:
                assert packet.pts is not None
                assert packet.dts is not None
                late = offset + (gap[1] if gap and packet.pts * packet.time_base >= gap[0] else 0)
                packet.pts += round(late / packet.time_base)
                packet.dts += round(late / packet.time_base)
                packets.append(packet)
        for packet in sorted(packets, key=lambda packet: float((packet.dts or 0) * packet.time_base)):
            file.mux(packet)
    return path


def join(path: Path, *parts: Path) -> Path:
    """Write files one after the other, as `cat` does."""
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


def damage(path: Path, share: float, length: int = 200) -> Path:
    """Overwrite `length` bytes at a share of the file."""
    content = bytearray(path.read_bytes())
    first = int(share * len(content))
    content[first : first + length] = np.random.default_rng(0).integers(0, 256, length, np.uint8).tobytes()
    path.write_bytes(bytes(content))
    return path
