"""Measure how far mouths are open, and how much heads move, from a video's pixels alone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

#: Contrast to the skin, in parts of its brightness, from which a pixel counts as mouth, and at which it counts in full.
_APART, _CLEAR = 0.11, 0.32
#: Squared radii, in halves of the box's sides: pixels beyond the first do not count, those beyond the second are skin.
_OVAL, _RIM = 1.0, 0.70
#: Half the width, in halves of the box's, within which a mouth is looked for.
_WIDE = 0.9
#: Dips of the contrast between lips, teeth and tongue are filled where they are lower than twice this part of the box.
_GAP = 0.08
#: The share of a box's columns, the fullest ones, whose heights are averaged: where the mouth is highest.
_COLUMNS = 0.45
#: How much of the face is followed, above the box, and how far, in heights of the box.
_ABOVE, _REACH = 1.5, 0.35
#: Frames at most from which the usual face is taken.
_SAMPLED = 32
#: Correlation that a place at the edge of the reach must have more than one that did not move.
_NEAR = 0.05


def mouth_openings(frames: npt.NDArray[np.uint8], boxes: npt.ArrayLike) -> Floats:
    """Return how far each mouth is open in each frame: (n, F) float32, heights in parts of the box's height.

    `frames` is uint8 (F, H, W, 3), RGB. `boxes` (n, 4) are x0, y0, x1, y1 in pixels, one around each mouth in frame 0,
    with some room; they go along with the faces above them. Raises ValueError for other shapes, and for a box with less
    than 4 pixels on a side within the picture.

    A mouth is what is not skin: the skin's colour is the median of the box's sides, for each frame, so that neither
    complexion nor light matters; teeth as well as the dark inside differ from every skin. Each column's height of
    mouth, filled between its upper and lower lip, is averaged over the fullest columns only, so that a broad mouth does
    not pass for an open one. What stays when it is shut, the lips, is a constant that a correlation does not see.
    """
    regions = np.asarray(boxes, np.float64)
    if regions.ndim != 2 or regions.shape[1] != 4:
        raise ValueError(f"boxes of shape {regions.shape} are not (n, 4)")
    return np.array([[_opening(region) for region in _followed(frames, box)] for box in regions], np.float32)


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


def _followed(frames: npt.NDArray[np.uint8], box: npt.NDArray[np.float64]) -> Iterator[Floats]:
    """Yield the box's pixels in each frame, 0 to 1, moved along with the face above the mouth.

    Where that is says the normalised cross-correlation with its median over time, to a part of a pixel by the parabola
    through the peak and its neighbours.
    """
    from scipy.ndimage import shift
    from skimage.feature import match_template

    height, width = frames.shape[1:3]
    x0, y0 = max(int(np.floor(box[0])), 0), max(int(np.floor(box[1])), 0)
    x1, y1 = min(int(np.ceil(box[2])), width), min(int(np.ceil(box[3])), height)
    if x1 - x0 < 4 or y1 - y0 < 4:
        raise ValueError(f"the mouth's box {box.tolist()} has less than 4 pixels on a side in {width}x{height}")
    reach = int(np.ceil(_REACH * (y1 - y0)))
    top = max(y0 - round(_ABOVE * (y1 - y0)), 0)
    sampled = frames[np.linspace(0, len(frames) - 1, min(len(frames), _SAMPLED)).round().astype(int), top:y0, x0:x1]
    # Most of the time eyes are open.
    usual = np.median(sampled, 0).mean(-1) / 255
    origin = None
    around = (slice(top, y1 + 2 * reach), slice(x0, x1 + 2 * reach))
    for frame in frames:
        near = np.pad(frame, ((reach, reach), (reach, reach), (0, 0)), mode="edge")[around] / 255
        # Else there is nothing above it that could be followed.
        if y0 - top >= 4:
            scores = match_template(near[: y0 - top + 2 * reach].mean(-1), usual)  # type: ignore[no-untyped-call]
            place = _peak(scores)
            origin = place if origin is None else origin
            moved = shift(near, (*(origin - place), 0), order=3, mode="nearest")
        else:
            moved = near
        yield np.clip(moved[reach + y0 - top : reach + y1 - top, reach : reach + x1 - x0], 0, 1).astype(np.float32)


def _peak(scores: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Return where the scores are highest, as offsets y, x from the middle."""
    middle = scores.shape[0] // 2
    offsets = np.arange(scores.shape[0]) - middle
    # Where all places look alike it is the nearest one.
    near = scores - _NEAR * (offsets[:, None] ** 2 + offsets**2) / middle**2
    y, x = np.unravel_index(int(near.argmax()), near.shape)
    found = np.array([y - middle, x - middle], np.float64)
    if 0 < y < 2 * middle and 0 < x < 2 * middle:
        found += _vertex(near[y - 1 : y + 2, x]), _vertex(near[y, x - 1 : x + 2])
    return found


def _vertex(three: npt.NDArray[np.floating]) -> float:
    """Return where, from the middle one, the parabola through three values has its peak."""
    bend = float(three[0] - 2 * three[1] + three[2])
    return 0.0 if bend >= 0 else 0.5 * float(three[0] - three[2]) / bend


def _opening(pixels: Floats) -> float:
    # A thin line counts the same between two pixels as on one.
    padded = np.pad(pixels, ((1, 1), (0, 0), (0, 0)), mode="edge")
    region = (padded[:-2] + 2 * pixels + padded[2:]) / 4
    rows, columns = region.shape[:2]
    v, u = np.abs(np.mgrid[:rows, :columns] + 0.5) / np.array([rows, columns]).reshape(2, 1, 1) * 2 - 1
    # Below the cheeks a box's corners lie beside the face.
    oval = (u / _WIDE) ** 2 + np.maximum(v, 0) ** 2 < _OVAL
    skin = np.median(region[oval & (u**2 + v**2 > _RIM)], 0)
    contrast = np.abs(region - skin).max(-1) / max(float(skin.max()), 0.1)
    clear = np.clip((contrast - _APART) / (_CLEAR - _APART), 0, 1) * oval
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
