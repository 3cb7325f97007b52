"""Pictures -> one small JPEG that shows them side by side."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from PIL import Image

#: Good enough to see whether a video goes well, in a few kilobytes.
_QUALITY = 70


def jpeg_strip(pictures: npt.NDArray[np.uint8], width: int) -> bytes:
    """Return uint8 RGB pictures (n, height, width, 3) as a JPEG, each scaled to `width` pixels, from left to right."""
    _, tall, wide, _ = pictures.shape
    height = max(1, round(width * tall / wide))
    strip = Image.new("RGB", (width * len(pictures), height))
    for index, picture in enumerate(pictures):
        small = Image.fromarray(np.ascontiguousarray(picture)).resize((width, height), Image.Resampling.BICUBIC)
        strip.paste(small, (index * width, 0))
    file = io.BytesIO()
    strip.save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()
