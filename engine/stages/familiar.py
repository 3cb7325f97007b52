"""Whether a picture is like those that the weights were trained on, checked before any work.

A folder of weights may contain `pictures.json` with statistics of its training pictures, computed by `fit`. That of the
embedded model comes from scripts/train_tiny/pictures.py. Weights without this file accept any picture.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

FILE = "pictures.json"

#: Pictures are scaled down to this many pixels, the embedded model's small size.
_AREA = 160 * 96
#: Histogram edges for differences between neighbouring pixels, in grey levels.
_STEPS = (0, 1, 2, 3, 5, 8, 12, 20, 35, 70, 256)
#: Limits, in grey levels, for the range within a block of 4 x 4 pixels.
_RANGES = (2, 4, 8, 16, 32, 64, 128)
#: Added to shares of pixels before the logarithm; smaller shares count as none.
_LEAST = 1e-3

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Familiar:
    """A normal distribution fitted to the features of the training pictures."""

    #: Description of the pictures, and advice for other pictures.
    what: str
    instead: str
    mean: Floats
    #: Inverse of the covariance.
    precision: Floats
    #: Maximum squared Mahalanobis distance of a familiar picture.
    limit: float

    def distance(self, pixels: npt.NDArray[np.uint8]) -> float:
        """Return the squared Mahalanobis distance of a picture (height, width, 3)."""
        difference = features(pixels) - self.mean
        return float(difference @ self.precision @ difference)

    def knows(self, pixels: npt.NDArray[np.uint8]) -> bool:
        """Return whether a picture, uint8 (height, width, 3), is like the training pictures."""
        return self.distance(pixels) <= self.limit

    def to_json(self) -> Mapping[str, Any]:
        """Return what `read_familiar` reads."""
        return {
            "what": self.what,
            "instead": self.instead,
            "limit": round(self.limit, 2),
            "mean": [float(f"{value:.8g}") for value in self.mean],
            "precision": [[float(f"{value:.8g}") for value in row] for row in self.precision],
        }


def read_familiar(folder: Path | None) -> Familiar | None:
    """Return the statistics of the training pictures in the weights folder; None if it has no such file."""
    if folder is None or not (folder / FILE).is_file():
        return None
    fitted = json.loads((folder / FILE).read_text("utf-8"))
    return Familiar(
        fitted["what"], fitted["instead"], np.array(fitted["mean"]), np.array(fitted["precision"]), fitted["limit"]
    )


def fit(pictures: Sequence[npt.NDArray[np.uint8]], *, what: str, instead: str, share: float) -> Familiar:
    """Return the distribution of `pictures`, of which `share` (0 to 1) lie within its limit."""
    table = np.stack([features(pixels) for pixels in pictures])
    # Regularised: otherwise a feature that hardly varies would dominate.
    covariance = np.cov(table.T) + 1e-3 * np.eye(table.shape[1])
    precision: Floats = np.linalg.inv(covariance).astype(np.float64)
    familiar = Familiar(what, instead, table.mean(0), precision, 0.0)
    distances = [familiar.distance(pixels) for pixels in pictures]
    return dataclasses.replace(familiar, limit=float(np.quantile(distances, share)))


def features(pixels: npt.NDArray[np.uint8]) -> Floats:
    """Return how flat, sharp and coloured a picture (height, width, 3) is: 24 numbers, whatever its content.

    Differences between neighbours (10 classes), flat blocks (7), colours (3), saturation and lightness (4).
    """
    small = _small(pixels)
    levels = small.astype(np.float64)
    across, down = (np.abs(np.diff(levels, axis=axis)).max(-1).ravel() for axis in (1, 0))
    steps = np.concatenate([across, down])
    classes = np.histogram(steps, _STEPS)[0] / max(steps.size, 1)

    height, width = (side // 4 * 4 for side in levels.shape[:2])
    blocks = levels[:height, :width].reshape(height // 4, 4, width // 4, 4, 3)
    ranges = (blocks.max((1, 3)) - blocks.min((1, 3))).max(-1)
    flat = np.array([(ranges <= limit).mean() for limit in _RANGES])

    # Colours with five bits per channel.
    five = (small >> 3).astype(np.int64)
    counted = np.bincount((five[..., 0] << 10 | five[..., 1] << 5 | five[..., 2]).ravel())
    shares = np.sort(counted[counted > 0])[::-1] / counted.sum()
    most = np.searchsorted(np.cumsum(shares), 0.9) + 1
    colours = [-(shares * np.log(shares)).sum(), np.log(most), np.log(shares.size)]

    saturation = levels.max(-1) - levels.min(-1)
    light = [saturation.mean() / 64, saturation.std() / 64, levels.mean() / 64, levels.std() / 64]
    return np.concatenate([np.log(classes + _LEAST), np.log(flat + _LEAST), colours, light])


def _small(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    height, width = pixels.shape[:2]
    scale = (_AREA / (height * width)) ** 0.5
    # At least two blocks per side. A small picture is not enlarged, since that would smooth it.
    size = tuple(max(8, round(side * min(scale, 1.0))) for side in (width, height))
    if size == (width, height):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((size[0], size[1]), Image.Resampling.LANCZOS, reducing_gap=3.0))
