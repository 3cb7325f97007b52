"""Blends the start of a window into the end of the window before."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.float32]


def blend_seam(frames: Pixels, last: Pixels, repeated: Pixels, length: int) -> None:
    """Blend the first `length` frames of a window, float32 (F, height, width, 3), into the one before, in place.

    `last` (height, width, 3) is the last frame of the window before, `repeated` the same frame as this window decodes
    it. They differ, because encoding and decoding are not exact inverses. Their difference is added to the new frames
    and fades out linearly.
    """
    for index in range(min(length, len(frames))):
        frames[index] += (1 - (index + 1) / (length + 1)) * (last - repeated)
