"""Measure how far mouths are open, and how much heads move, from a video's pixels alone."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

#: Contrast to the skin from which a pixel counts as mouth, and at which it counts in full: how much lighter, in parts
#: of white, or darker, in parts of the skin's brightness.
_APART, _CLEAR = 0.11, 0.32
#: Squared radii, in halves of the box's sides: pixels beyond the first do not count, those beyond the second are skin.
_OVAL, _RIM = 1.0, 0.70
#: Half the width, in halves of the box's, within which a mouth is looked for.
_WIDE = 0.9
#: Dips of the contrast between lips, teeth and tongue are filled where they are lower than twice this part of the box.
_GAP = 0.08
#: The share of a box's columns, the fullest ones, whose heights are averaged: where the mouth is highest.
_COLUMNS = 0.45


def mouth_openings(frames: npt.NDArray[np.uint8], boxes: npt.ArrayLike) -> Floats:
    """Return how far each mouth is open in each frame: (n, F) float32, heights in parts of the box's height.

    `frames` is uint8 (F, H, W, 3), RGB. `boxes` are x0, y0, x1, y1 in pixels: (n, 4) for one region a mouth that holds
    for all frames (so large that a moving head keeps its mouth inside), or (n, F, 4). Raises ValueError for a box with
    less than 4 pixels on a side within the picture.

    A mouth is what is not skin: the skin's colour is the median of the box's sides, for each frame, so that neither
    complexion nor light matters; teeth as well as the dark inside differ from every skin. Each column's height of
    mouth, filled between its upper and lower lip, is averaged over the fullest columns only, so that a broad mouth does
    not pass for an open one. What stays when it is shut, the lips, is a constant that a correlation does not see.
    """
    regions = np.asarray(boxes, np.float64)
    if regions.ndim == 2:
        regions = np.repeat(regions[:, None], len(frames), 1)
    if regions.shape[1:] != (len(frames), 4):
        raise ValueError(f"boxes of shape {np.shape(boxes)} do not fit {len(frames)} frames: give (n, 4) or (n, F, 4)")
    return np.array(
        [[_opening(frame, box) for frame, box in zip(frames, row, strict=True)] for row in regions], np.float32
    )


def motion_energy(frames: npt.NDArray[np.uint8], boxes: npt.ArrayLike, without: npt.ArrayLike | None = None) -> Floats:
    """Return how much each box moves: (n, F - 1) mean absolute differences of neighbouring frames, 0 to 1.

    `boxes` (n, 4) are x0, y0, x1, y1 in pixels. Pixels within `without` (n, 4), the mouths as a rule, are left out, so
    that heads and blinks remain.
    """
    difference = np.abs(np.diff(frames.astype(np.float32), axis=0)).mean(-1) / 255
    height, width = frames.shape[1:3]
    y, x = np.mgrid[:height, :width] + 0.5
    rows = []
    for number, box in enumerate(np.asarray(boxes, np.float64)):
        inside = _within(x, y, box)
        if without is not None:
            inside &= ~_within(x, y, np.asarray(without, np.float64)[number])
        rows.append(difference[:, inside].mean(1))
    return np.array(rows, np.float32)


def correlation(one: npt.ArrayLike, other: npt.ArrayLike) -> float:
    """Return Pearson's correlation of two curves; 0 where one of them is constant."""
    a, b = np.asarray(one, np.float64), np.asarray(other, np.float64)
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / norm if norm > 1e-9 else 0.0


def best_lag(measured: npt.ArrayLike, driving: npt.ArrayLike, max_lag: int) -> tuple[int, float]:
    """Return (lag, correlation) of the lag, -max_lag to max_lag frames, at which two curves of one length agree best.

    A positive lag says that `measured` comes later than `driving`. Of equals the smallest lag wins.
    """
    late, early = np.asarray(measured, np.float64), np.asarray(driving, np.float64)
    best = (0, correlation(late, early))
    for lag in sorted(range(-max_lag, max_lag + 1), key=abs):
        ahead, behind = max(lag, 0), max(-lag, 0)
        found = correlation(late[ahead : len(late) - behind], early[behind : len(early) - ahead])
        if found > best[1]:
            best = (lag, found)
    return best


def _opening(frame: npt.NDArray[np.uint8], box: npt.NDArray[np.float64]) -> float:
    height, width = frame.shape[:2]
    x0, y0 = max(int(np.floor(box[0])), 0), max(int(np.floor(box[1])), 0)
    x1, y1 = min(int(np.ceil(box[2])), width), min(int(np.ceil(box[3])), height)
    if x1 - x0 < 4 or y1 - y0 < 4:
        raise ValueError(f"the mouth's box {box.tolist()} has less than 4 pixels on a side in {width}x{height}")
    region = frame[y0:y1, x0:x1].astype(np.float32) / 255
    # A thin line counts the same between two pixels as on one.
    padded = np.pad(region, ((1, 1), (0, 0), (0, 0)), mode="edge")
    region = (padded[:-2] + 2 * region + padded[2:]) / 4
    rows, columns = region.shape[:2]
    v, u = np.abs(np.mgrid[:rows, :columns] + 0.5) / np.array([rows, columns]).reshape(2, 1, 1) * 2 - 1
    # Below the cheeks a box's corners lie beside the face.
    oval = (u / _WIDE) ** 2 + np.maximum(v, 0) ** 2 < _OVAL
    skin = np.median(region[oval & (u**2 + v**2 > _RIM)], 0)
    lighter, darker = (region - skin).max(-1), (skin - region).max(-1) / max(float(skin.max()), 0.1)
    clear = np.clip((np.maximum(lighter, darker) - _APART) / (_CLEAR - _APART), 0, 1) * oval
    heights = np.sort(_closed(clear, max(round(_GAP * rows), 1)).mean(0))
    return float(heights[-max(round(_COLUMNS * columns), 1) :].mean())


def _closed(picture: npt.NDArray[np.float32], reach: int) -> npt.NDArray[np.float32]:
    """Fill dips along columns of up to 2 * `reach` rows: a grey closing."""
    padded = np.pad(picture, ((2 * reach, 2 * reach), (0, 0)))
    window = 2 * reach + 1
    grown = np.lib.stride_tricks.sliding_window_view(padded, window, 0).max(-1)
    filled: npt.NDArray[np.float32] = np.lib.stride_tricks.sliding_window_view(grown, window, 0).min(-1)
    return filled


def _within(
    x: npt.NDArray[np.float64], y: npt.NDArray[np.float64], box: npt.NDArray[np.float64]
) -> npt.NDArray[np.bool_]:
    inside: npt.NDArray[np.bool_] = (x >= box[0]) & (x < box[2]) & (y >= box[1]) & (y < box[3])
    return inside
