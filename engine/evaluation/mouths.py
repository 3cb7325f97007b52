"""Measure how far mouths are open, and how much heads move, from a video's pixels alone."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

#: Distance from the skin (in YUV, relative to its brightness) from which a colour fully counts as mouth: a share of the
#: usual mouth's distance, which is this quantile of the box, within limits.
_CLEAR, _USUAL, _LEAST, _MOST = 0.6, 0.95, 0.05, 0.28
#: Share of that distance from which a colour counts at all.
_APART = 0.3
#: Squared radii, in half sides of the box: pixels beyond the first do not count, those beyond the second are skin.
_OVAL, _RIM = 1.0, 0.70
#: Half the width in which a mouth is searched, in half widths of the box.
_WIDE = 0.9
#: Gaps in the contrast between lips, teeth and tongue are filled if they are lower than twice this share of the box.
_GAP = 0.08
#: Share of a box's columns whose heights are averaged: those where the mouth is highest.
_COLUMNS = 0.45
#: How much of the face above the box is tracked, and how far, in heights of the box.
_ABOVE, _REACH = 1.5, 0.35
#: Most frames that are used for the usual face.
_SAMPLED = 32
#: How much better a place at the edge of the reach must correlate than an unmoved one.
_NEAR = 0.05
#: How much less than usual a head may correlate with the usual face and still count as visible.
_UNLIKE = 0.25
#: Widths of the patch that is compared with its surroundings, and of the box around a mouth, as fractions of the square
#: root of the picture's area; both have the shape 4:3. Smaller patches would find eyes and lips separately.
_PATCH, _BOX = 0.13, 0.24


def mouth_openings(frames: npt.NDArray[np.uint8], boxes: npt.ArrayLike, *, order: int = 3) -> Floats:
    """Return how far each mouth is open in each frame: (n, F) float32, heights relative to the box's height.

    `frames` is uint8 (F, H, W, 3), RGB. `boxes` (n, 4) are x0, y0, x1, y1 in pixels, one around each mouth in frame 0,
    with some room; they move with the faces above them. Raises ValueError for other shapes, and for a box with fewer
    than 4 pixels on a side within the picture.

    Everything that is not skin is mouth: the skin's colour is the median of the box's sides, for each frame, so that
    neither complexion nor light matters; teeth and the dark inside differ from every skin. How much lips differ is
    measured over all frames of the box, so that lips on dark skin count like those on light skin. The mouth's height in
    each column, filled between upper and lower lip, is averaged over the highest columns only, so that a broad mouth is
    not measured as an open one. Shut lips add a constant, which does not affect a correlation.

    `order` is that of the spline with which moved boxes are read: 1 takes a fifth of the time of 3, and blurs a little.
    """
    regions = np.asarray(boxes, np.float64)
    if regions.ndim != 2 or regions.shape[1] != 4:
        raise ValueError(f"boxes of shape {regions.shape} are not (n, 4)")
    return np.array([_openings(_followed(frames, box, order)) for box in regions], np.float32)


def find_mouths(frames: npt.NDArray[np.uint8], seats: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return (n, 4), x0, y0, x1, y1 in pixels: a box for the mouth of each of the people in `seats` (n, 4).

    It works for drawn people who speak: their mouths move most from frame to frame, relative to their surroundings.
    It uses no voice, so a mouth that does not follow its voice is found as well. `frames` is uint8 (F, H, W, 3).
    """
    from scipy.ndimage import uniform_filter

    height, width = frames.shape[1:3]
    side = float(np.sqrt(height * width))
    # The first frame is the source picture; the second may differ strongly from it.
    grey = frames[1:].mean(-1, dtype=np.float32)
    moving = np.abs(np.diff(grey, axis=0)).mean(0)
    patch = max(3, round(0.75 * _PATCH * side)), max(3, round(_PATCH * side))
    boxes = []
    for x0, y0, x1, y1 in np.asarray(seats, int):
        part = moving[y0:y1, x0:x1]
        contrast = uniform_filter(part, patch) - uniform_filter(part, [2 * length for length in patch])
        y, x = np.unravel_index(int(contrast.argmax()), contrast.shape)
        middle = np.array([x0 + x + 0.5, y0 + y + 0.5])
        half = np.array([1, 0.75]) * _BOX * side / 2
        boxes.append([*(middle - half), *(middle + half)])
    return np.array(boxes)


def face_places(frames: npt.NDArray[np.uint8], box: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return how far the face above the mouth in `box` has moved in each frame: (F, 2), y and x in pixels.

    `frames` and `box` (x0, y0, x1, y1) are as those of `mouth_openings`. Raises ValueError for a mouth without a face
    above it.
    """
    height, width = frames.shape[1:3]
    x0, y0, x1, y1 = (int(edge) for edge in np.clip(np.rint(np.asarray(box)), 0, (width, height, width, height)))
    top = max(y0 - round(_ABOVE * (y1 - y0)), 0)
    if y0 - top < 4 or x1 - x0 < 4:
        raise ValueError(f"there is no face above the mouth's box {np.asarray(box).tolist()}")
    return _places(frames, (slice(top, y0), slice(x0, x1)), int(np.ceil(_REACH * (y1 - y0))))


def motion_energy(frames: npt.NDArray[np.uint8], boxes: npt.ArrayLike, without: npt.ArrayLike | None = None) -> Floats:
    """Return how much each box moves: (n, F - 1) mean absolute differences of neighbouring frames, 0 to 1.

    `boxes` (n, 4) are x0, y0, x1, y1 in pixels. Pixels within `without` (n, 4), usually the mouths, are left out, so
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
    """Return Pearson's correlation of two curves; 0 if one of them is constant."""
    a, b = np.asarray(one, np.float64), np.asarray(other, np.float64)
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / norm if norm > 1e-9 else 0.0


def best_lag(measured: npt.ArrayLike, driving: npt.ArrayLike, max_lag: int) -> tuple[int, float]:
    """Return (lag, correlation) for the lag, -max_lag to max_lag frames, at which two curves agree best.

    Both have the same length. A positive lag means that `measured` is later than `driving`; in a tie the smallest wins.
    """
    curve, driver = np.asarray(measured, np.float64), np.asarray(driving, np.float64)
    best = (0, correlation(curve, driver))
    for lag in sorted(range(-max_lag, max_lag + 1), key=abs):
        ahead, behind = max(lag, 0), max(-lag, 0)
        score = correlation(curve[ahead : len(curve) - behind], driver[behind : len(driver) - ahead])
        if score > best[1]:
            best = (lag, score)
    return best


def _followed(frames: npt.NDArray[np.uint8], box: npt.NDArray[np.float64], order: int) -> Floats:
    """Return the box's pixels in each frame (F, h, w, 3), 0 to 1, moved with the face above the mouth."""
    from scipy.ndimage import shift

    height, width = frames.shape[1:3]
    x0, y0 = max(int(np.floor(box[0])), 0), max(int(np.floor(box[1])), 0)
    x1, y1 = min(int(np.ceil(box[2])), width), min(int(np.ceil(box[3])), height)
    if x1 - x0 < 4 or y1 - y0 < 4:
        raise ValueError(f"the mouth's box {box.tolist()} has less than 4 pixels on a side in {width}x{height}")
    reach = int(np.ceil(_REACH * (y1 - y0)))
    top = max(y0 - round(_ABOVE * (y1 - y0)), 0)
    mouth, face = (slice(y0, y1), slice(x0, x1)), (slice(top, y0), slice(x0, x1))
    if y0 - top < 4:
        # There is nothing above it that could be tracked.
        return (frames[:, *mouth] / 255).astype(np.float32)
    places = _places(frames, face, reach)
    near = (_around(frame, mouth, reach) for frame in frames)
    moved = (
        shift(one, (*way, 0), order=order, mode="nearest") for one, way in zip(near, places[0] - places, strict=True)
    )
    return np.stack([np.clip(one[reach:-reach, reach:-reach], 0, 1).astype(np.float32) for one in moved])


def _places(frames: npt.NDArray[np.uint8], face: tuple[slice, slice], reach: int) -> npt.NDArray[np.float64]:
    """Return the movement of the pixels `face` of the usual picture in each frame: (F, 2), y and x, up to `reach`.

    It is measured by the normalised cross-correlation with their median over time, with subpixel precision by a
    parabola through the peak and its neighbours. If they look different, for example in a blink, the position is
    interpolated between the frames before and after.
    """
    from skimage.feature import match_template

    sampled = np.linspace(0, len(frames) - 1, min(len(frames), _SAMPLED)).round().astype(int)
    # Most of the time eyes are open.
    usual = np.median(frames[sampled, *face], 0).mean(-1) / 255
    scores = np.array(
        [match_template(_around(frame, face, reach).mean(-1), usual) for frame in frames]  # type: ignore[no-untyped-call]
    )
    places = np.array([_peak(score) for score in scores])
    alike = scores.max((1, 2))
    times, visible = np.arange(len(frames)), alike >= np.median(alike) - _UNLIKE
    return np.stack([np.interp(times, times[visible], axis[visible]) for axis in places.T], 1)


def _around(frame: npt.NDArray[np.uint8], part: tuple[slice, slice], reach: int) -> npt.NDArray[np.float64]:
    """Return a part of the frame with `reach` more pixels on each side, 0 to 1; edge pixels are repeated."""
    rows, columns = (np.arange(side.start - reach, side.stop + reach) for side in part)
    return np.asarray(frame.take(rows, 0, mode="clip").take(columns, 1, mode="clip") / 255, np.float64)


def _peak(scores: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Return the offset y, x from the middle of the highest score."""
    middle = scores.shape[0] // 2
    offsets = np.arange(scores.shape[0]) - middle
    # If all places look the same, the nearest one.
    near = scores - _NEAR * (offsets[:, None] ** 2 + offsets**2) / middle**2
    y, x = np.unravel_index(int(near.argmax()), near.shape)
    shift = np.array([y - middle, x - middle], np.float64)
    if 0 < y < 2 * middle and 0 < x < 2 * middle:
        shift += _vertex(near[y - 1 : y + 2, x]), _vertex(near[y, x - 1 : x + 2])
    return shift


def _vertex(three: npt.NDArray[np.floating]) -> float:
    """Return the offset from the middle value of the peak of a parabola through three values."""
    bend = float(three[0] - 2 * three[1] + three[2])
    return 0.0 if bend >= 0 else 0.5 * float(three[0] - three[2]) / bend


def _openings(pixels: Floats) -> Floats:
    """Return how far the mouth is open in each frame of its box's pixels (F, h, w, 3)."""
    from skimage.color import rgb2yuv

    # A thin line counts the same on one pixel and between two.
    padded = np.pad(pixels, ((0, 0), (1, 1), (0, 0), (0, 0)), mode="edge")
    region = (padded[:, :-2] + 2 * pixels + padded[:, 2:]) / 4
    rows, columns = region.shape[1:3]
    v, u = np.abs(np.mgrid[:rows, :columns] + 0.5) / np.array([rows, columns]).reshape(2, 1, 1) * 2 - 1
    # Below the cheeks, the box's corners are outside the face.
    oval = (u / _WIDE) ** 2 + np.maximum(v, 0) ** 2 < _OVAL
    skin = np.median(region[:, oval & (u**2 + v**2 > _RIM)], 1)[:, None, None]
    apart = np.linalg.norm(rgb2yuv(region - skin), axis=-1)
    contrast = apart / np.maximum(skin.max(-1), 0.1)
    # The contrast of lips depends much on the skin.
    clear = np.clip(_CLEAR * np.quantile(np.median(contrast, 0)[oval], _USUAL), _LEAST, _MOST)
    mouth = np.clip((contrast / clear - _APART) / (1 - _APART), 0, 1) * oval
    heights = np.sort(_closed(mouth, max(round(_GAP * rows), 1)).mean(1), 1)
    opening: Floats = heights[:, -max(round(_COLUMNS * columns), 1) :].mean(1).astype(np.float32)
    return opening


def _closed(pictures: npt.NDArray[np.floating], reach: int) -> npt.NDArray[np.floating]:
    """Fill gaps of up to 2 * `reach` rows along the columns of the pictures (F, h, w): a grey closing."""
    from scipy.ndimage import grey_closing

    # Beyond the edge there is nothing, also while gaps are filled.
    padded = np.pad(pictures, ((0, 0), (2 * reach, 2 * reach), (0, 0)))
    return np.asarray(grey_closing(padded, size=(1, 2 * reach + 1, 1))[:, 2 * reach : -2 * reach])


def _within(
    x: npt.NDArray[np.float64], y: npt.NDArray[np.float64], box: npt.NDArray[np.float64]
) -> npt.NDArray[np.bool_]:
    inside: npt.NDArray[np.bool_] = (x >= box[0]) & (x < box[2]) & (y >= box[1]) & (y < box[3])
    return inside
