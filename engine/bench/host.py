"""Time the host's work on a window's frames while the device waits: colours and H.264, on one thread, as JSON."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from engine.data import Frames
from engine.errors import RequestError
from engine.media.color import color_statistics, match_color
from engine.stages.write import Writer

#: Width and height of a picture in each resolution of the 14B model.
_SIZES = {"480p": (832, 448), "720p": (1280, 704)}


def run(frames: int = 25, runs: int = 3) -> dict[str, Any]:
    """Match the colours of `frames` synthetic frames and encode them, `runs` times; the least processor time counts.

    Seconds are processor time, which other work on the machine changes little: of this thread for colours, of the
    process for the encoder, which has its own threads. engine/planning/seconds.py has them per pixel.
    """
    if frames < 2 or runs < 1:
        raise RequestError(f"{frames} frames, {runs} runs", field="bench host", hint="2 frames or more, 1 run or more")
    return {
        "bench": "host",
        "frames": frames,
        "runs": runs,
        **{name: _measure(frames, runs, size) for name, size in _SIZES.items()},
    }


def _measure(frames: int, runs: int, size: tuple[int, int]) -> dict[str, float]:
    width, height = size
    pictures = _moving(frames, height, width)
    whole = Frames(np.clip((pictures + 1) / 2 * 255, 0, 255).astype(np.uint8), 25)
    pixels = torch.from_numpy(pictures).permute(3, 0, 1, 2).contiguous()
    reference = color_statistics(pixels[:, 0])

    def matched() -> None:
        match_color(pixels.clone(), reference, 1.0)

    colors = min(_timed(time.thread_time, matched) for _ in range(runs))
    encoding = min(_timed(time.process_time, lambda: _encode(whole, size)) for _ in range(runs))
    return {
        "colors_seconds_per_frame": colors / frames,
        "encoding_seconds_per_frame": encoding / frames,
        "colors_seconds_per_pixel": colors / (frames * width * height),
        "encoding_seconds_per_pixel": encoding / (frames * width * height),
    }


def _timed(clock: Callable[[], float], work: Callable[[], object]) -> float:
    began = clock()
    work()
    return clock() - began


def _moving(frames: int, height: int, width: int) -> npt.NDArray[np.float32]:
    """Return a soft pattern that moves, with the grain of a decoded picture."""
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    pattern = np.empty((frames, height, width, 3), np.float32)
    for index in range(frames):
        for channel in range(3):
            pattern[index, :, :, channel] = np.sin((columns + 3 * index) / 40 + channel) * np.cos(
                rows / 30 + index / 20
            )
    grain = random.standard_normal(pattern.shape, np.float32)
    return np.clip(0.8 * pattern + 0.02 * grain, -1, 1)


def _encode(frames: Frames, size: tuple[int, int]) -> None:
    with tempfile.TemporaryDirectory() as folder, Writer(Path(folder) / "video.mp4", size, frames.fps) as writer:
        writer.add(frames)
        writer.finish()
