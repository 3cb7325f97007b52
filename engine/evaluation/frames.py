"""Read the frames of an MP4 file."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

from engine.evaluation.metrics import Pictures
from engine.media.containers import open_input


def read_video(path: Path, into: BinaryIO | None = None) -> Pictures:
    """Return the frames of an MP4 file, uint8 RGB (F, H, W, 3): in memory, or mapped from the open file `into`."""
    reformat = VideoReformatter()
    with open_input(path) as file:
        stream = file.streams.video[0]
        shape = (stream.frames, stream.height, stream.width, 3)
        frames: Pictures = np.empty(shape, np.uint8) if into is None else np.memmap(into, np.uint8, "w+", shape=shape)
        for number, frame in enumerate(file.decode(stream)):
            frames[number] = reformat.reformat(
                frame,
                format="rgb24",
                src_colorspace=Colorspace.ITU709,
                src_color_range=ColorRange.MPEG,
                dst_color_range=ColorRange.JPEG,
            ).to_ndarray()
    return frames
