"""Windows of a made-up video, written as segments: pictures that move, and a tone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

from engine.data import Artifact, Frames
from engine.media.segments import Segment
from engine.stages.write import VideoOptions, Writer

SIZE = (64, 48)


def pictures(first: int, count: int) -> npt.NDArray[np.uint8]:
    frames = np.empty((count, SIZE[1], SIZE[0], 3), np.uint8)
    for index in range(count):
        frames[index] = (200, 30 + (first + index) % 200, 60)
        place = (3 * (first + index)) % 48
        frames[index, 8:24, place : place + 16] = (20, 220, 90)
    return frames


def tone(seconds: float) -> npt.NDArray[np.float32]:
    samples = 0.5 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * 48_000)) / 48_000)
    return np.repeat(samples[:, None], 2, axis=1).astype(np.float32)


def video(path: Path, fps: float, counts: Sequence[int], preset: str = "medium") -> Writer:
    """Return a writer for windows of `counts` frames, with a tone of their length."""
    return Writer(path, SIZE, fps, tone(sum(counts) / fps), VideoOptions(preset=preset))


def write(writer: Writer, counts: Sequence[int], each: Callable[[Segment], None]) -> Artifact:
    """Write windows of `counts` frames; `each` gets their segments."""
    fps = float(writer.rate)
    for index, count in enumerate(counts):
        if count:
            writer.add(Frames(pictures(writer.frames, count), fps))
        each(writer.end_segment(last=index == len(counts) - 1))
    return writer.finish()


def decoded(path: str) -> tuple[list[bytes], list[float], npt.NDArray[np.float32]]:
    """Return the pictures of a video, their times in seconds, and its sound (samples, 2)."""
    with av.open(path) as file:
        frames = list(file.decode(video=0))
        shown = [frame.to_ndarray().tobytes() for frame in frames]
        times = [float((frame.pts or 0) * (frame.time_base or 0)) for frame in frames]
    with av.open(path) as file:
        sound = np.concatenate([frame.to_ndarray().T for frame in file.decode(audio=0)])
    return shown, times, sound
