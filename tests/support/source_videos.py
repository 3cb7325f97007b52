"""Small source videos, drawn and encoded here."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

from scripts.train_tiny.scene import draw, random_scene

Pictures = npt.NDArray[np.uint8]


def scene_frames(seed: int, count: int, *, size: tuple[int, int] = (160, 96), fps: float = 25.0) -> Pictures:
    """Return frames of a drawn person who moves the head and keeps the mouth shut: uint8 (count, H, W, 3)."""
    scene = random_scene(seed, size, 1, "held_out")
    return np.stack([draw(scene, 2 + number / fps) for number in range(count)])


def numbered(count: int, *, size: tuple[int, int] = (64, 48)) -> Pictures:
    """Return grey frames whose level is 10 + 4 times their number."""
    levels = (10 + 4 * np.arange(count)).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (count, size[1], size[0], 3)).copy()


def number_of(picture: Pictures) -> int:
    """Return the number of a frame of `numbered`."""
    return round((float(picture.mean()) - 10) / 4)


def write_source(
    path: Path,
    frames: Pictures,
    fps: float | Fraction = 25,
    *,
    times: Sequence[float] | None = None,
    sound: npt.NDArray[np.float32] | None = None,
    aspect: Fraction | None = None,
    colours: bool = False,
) -> Path:
    """Write a video that loses only what the conversion to YUV loses.

    `times` are those of its frames in seconds, `sound` mono samples at 48 kHz. With `colours` it is kept in RGB, and
    nothing is lost.
    """
    rate = Fraction(fps).limit_denominator(1001)
    with av.open(path, "w") as container:
        options = {} if colours else {"qp": "0", "preset": "ultrafast"}
        stream = container.add_stream("ffv1" if colours else "libx264", rate=rate, options=options)
        stream.width, stream.height = frames.shape[2], frames.shape[1]
        stream.pix_fmt = "bgr0" if colours else "yuv420p"
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        base = Fraction(1, 1000) if times is not None else 1 / rate
        stream.codec_context.time_base = base
        track = None if sound is None else container.add_stream("aac", rate=48_000, layout="mono")
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = number if times is None else round(times[number] * 1000)
            frame.time_base = base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if track is not None and sound is not None:
            for begin in range(0, len(sound), 1024):
                piece = np.ascontiguousarray(sound[None, begin : begin + 1024])
                block = av.AudioFrame.from_ndarray(piece, format="fltp", layout="mono")
                block.sample_rate, block.pts, block.time_base = 48_000, begin, Fraction(1, 48_000)
                container.mux(track.encode(block))
            container.mux(track.encode())
    return path


def turn(path: Path) -> Path:
    """Make players turn an MP4 by 90 degrees clockwise, as a phone that was held upright writes it."""
    content = bytearray(path.read_bytes())
    place = content.index(b"tkhd") + 4 + 4 + 20 + 16
    matrix = [0, 0x10000, 0, -0x10000, 0, 0, 0, 0, 0x40000000]
    content[place : place + 36] = b"".join(value.to_bytes(4, "big", signed=True) for value in matrix)
    path.write_bytes(content)
    return path
