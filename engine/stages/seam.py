"""Two windows -> frames that go on where the one before ended."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.float32]


def blend_seam(frames: Pixels, shown: Pixels, repeated: Pixels, length: int) -> None:
    """Ease the first `length` frames of a window, float32 (F, height, width, 3), from what was shown before, in place.

    `shown` (height, width, 3) is the last frame of the window before, `repeated` what this window makes of it: the
    autoencoder, coding what it decoded, does not bring it back exactly. Their difference is added to the new frames and
    fades out along a straight line.
    """
    for index in range(min(length, len(frames))):
        frames[index] += (1 - (index + 1) / (length + 1)) * (shown - repeated)
