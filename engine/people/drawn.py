"""Find drawn people by a linear detector on gradients of the whole head; its weights are in this package.

Source of the method: Dalal and Triggs, Histograms of Oriented Gradients for Human Detection, 2005. Trained by
`python -m scripts.train_people`.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.ndimage import gaussian_filter

Picture = npt.NDArray[np.uint8]
Head = tuple[float, float, float, float]

WEIGHTS = Path(__file__).parent / "drawn.npz"
#: Pixels per cell, cells along a window's side, directions of a gradient, and half a head's height in the window.
CELL, SIDE, BINS, RADIUS = 4, 10, 9, 13.0
#: Half a head's height as a share of the picture's shorter side: what is looked for, and the ratio of two sizes.
SMALLEST, LARGEST, RATIO = 0.09, 0.62, 1.1
#: Scores of heads: of 495 held-out people one is below 2, and the next at 3.
SURE = 2.0
#: Hue in degrees and chroma, in CIE Lab, of a face's middle. Held-out people, at night too, have -1 to 91, and 8 to 51.
HUES, CHROMAS = (-15.0, 105.0), (5.0, 54.0)
#: Two heads whose middles are nearer than this many half heights are one.
NEAR = 1.1


def cells_of(grey: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Return histograms of gradient directions, (rows, columns, BINS) of CELL pixels, each scaled by its surroundings.

    `grey` is a float array (height, width) in 0 .. 1.
    """
    down, across = np.gradient(gaussian_filter(grey, 0.6))
    strength = np.hypot(down, across)
    turn = (np.arctan2(down, across) % np.pi) / np.pi * BINS
    low = np.floor(turn).astype(int) % BINS
    part = turn - np.floor(turn)
    rows, columns = grey.shape[0] // CELL, grey.shape[1] // CELL
    planes = np.zeros((*grey.shape, BINS), np.float32)
    index = np.indices(grey.shape)
    planes[index[0], index[1], low] += strength * (1 - part)
    planes[index[0], index[1], (low + 1) % BINS] += strength * part
    cut = planes[: rows * CELL, : columns * CELL]
    cells = cut.reshape(rows, CELL, columns, CELL, BINS).sum((1, 3))
    energy = gaussian_filter((cells**2).sum(2), 1.5)
    scaled: npt.NDArray[np.float32] = np.minimum(cells / np.sqrt(energy + 0.05)[..., None], 1.0).astype(np.float32)
    return scaled


def windows_of(cells: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return all windows of the cells as rows: (rows, columns, SIDE * SIDE * BINS)."""
    view = np.lib.stride_tricks.sliding_window_view(cells, (SIDE, SIDE), axis=(0, 1))
    return view.transpose(0, 1, 3, 4, 2).reshape(*view.shape[:2], -1)


@functools.cache
def _detector() -> tuple[npt.NDArray[np.float32], float]:
    with np.load(WEIGHTS) as stored:
        return stored["weights"].astype(np.float32), float(stored["bias"])


def sizes(shape: tuple[int, int]) -> list[tuple[float, tuple[int, int]]]:
    """Return (scale, (width, height)) of each size at which a picture of `shape` (height, width) is looked at."""
    shorter, found = min(shape), []
    share = SMALLEST
    while share <= LARGEST:
        scale = RADIUS / (share * shorter)
        found.append((scale, (round(shape[1] * scale), round(shape[0] * scale))))
        share *= RATIO
    return found


def look(picture: Picture) -> list[tuple[Head, npt.NDArray[Any]]]:
    """Return each window as ((score, x, y, half height), features), with a score above -1; places in pixels.

    The picture is uint8 RGB (height, width, 3).
    """
    weights, bias = _detector()
    grey, found = Image.fromarray(picture).convert("L"), []
    for scale, size in sizes(picture.shape[:2]):
        # A margin, so that a head at the edge has a whole window.
        margin = SIDE * CELL // 2
        small = np.asarray(grey.resize(size, Image.Resampling.BOX if scale < 1 else Image.Resampling.BILINEAR))
        wide = np.pad(small.astype(np.float32) / 255, margin, mode="edge")
        for shift in (0, CELL // 2):
            rows = windows_of(cells_of(wide[shift:, shift:]))
            scores = rows @ weights + bias
            for row, column in zip(*np.nonzero(scores > -1), strict=True):
                x, y = ((at * CELL + shift + SIDE * CELL / 2 - margin) / scale for at in (column, row))
                if 0 <= x <= picture.shape[1] and 0 <= y <= picture.shape[0]:
                    found.append(((float(scores[row, column]), float(x), float(y), RADIUS / scale), rows[row, column]))
    return found


def heads(picture: Picture, threshold: float = SURE) -> list[Head]:
    """Return (score, x, y, half height) of drawn heads, in pixels, the surest first. `picture` is uint8 RGB."""
    kept: list[Head] = []
    for head, _ in sorted(look(picture), key=lambda found: -found[0][0]):
        score, x, y, radius = head
        if score > threshold and all(np.hypot(x - a, y - b) > NEAR * max(radius, r) for _, a, b, r in kept):
            kept.append(head)
    return kept


def has_skin(picture: Picture, head: Head) -> bool:
    """Return whether the middle of a head has a colour that skin may have. `picture` is uint8 RGB."""
    from skimage.color import rgb2lab

    _, x, y, radius = head
    rows, columns = np.indices(picture.shape[:2])
    inside = ((columns - x) / (0.5 * radius)) ** 2 + ((rows - y - 0.1 * radius) / (0.55 * radius)) ** 2 < 1
    if not inside.any():
        return False
    _, a, b = np.median(rgb2lab(picture[inside]), axis=0)
    return bool(HUES[0] < np.degrees(np.arctan2(b, a)) < HUES[1] and CHROMAS[0] < np.hypot(a, b) < CHROMAS[1])
