"""Match the colours of frames to the source picture."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.float32]


class Statistics(NamedTuple):
    """Mean and standard deviation of each CIE Lab channel (D65), float32 (3,)."""

    mean: Pixels
    deviation: Pixels


def color_statistics(picture: Pixels) -> Statistics:
    """Measure a picture: float32 RGB (height, width, 3) in -1 .. 1."""
    from skimage.color import rgb2lab

    return _measure(rgb2lab(_unit(picture)))


def match_color(frames: Pixels, reference: Statistics, strength: float = 1.0) -> Pixels:
    """Pull each frame's Lab statistics to those of `reference`; float32 RGB (time, height, width, 3) in -1 .. 1.

    `strength` 0 .. 1 mixes the result with the given frames; 0 returns them unchanged. A channel without variance
    becomes the reference's mean. Frames are converted one at a time, because Lab needs several copies in memory.
    Source: Reinhard et al., Color Transfer between Images (2001), as in MultiTalk, match_and_blend_colors.
    """
    if strength == 0:
        return frames
    from skimage.color import lab2rgb, rgb2lab

    result = np.empty_like(frames)
    for index, frame in enumerate(frames):
        lab_input = _unit(frame)
        lab = rgb2lab(lab_input)
        own = _measure(lab)
        varied = own.deviation > 0
        scale = np.where(varied, reference.deviation / np.where(varied, own.deviation, 1), 0).astype(np.float32)
        matched = np.clip(lab2rgb((lab - own.mean) * scale + reference.mean), 0, 1)
        result[index] = ((1 - strength) * lab_input + strength * matched) * 2 - 1
    return result


def _unit(pixels: Pixels) -> Pixels:
    unit: Pixels = np.clip((pixels.astype(np.float32) + 1) / 2, 0, 1)
    return unit


def _measure(lab: Pixels) -> Statistics:
    flat = lab.reshape(-1, 3)
    # float64 sums: a flat channel must have a deviation of exactly 0, and rounding must not grow with size.
    mean, deviation = flat.mean(axis=0, dtype=np.float64), flat.std(axis=0, dtype=np.float64)
    return Statistics(mean.astype(np.float32), deviation.astype(np.float32))
