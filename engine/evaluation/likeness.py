"""Measure whether a video still shows the same picture and people, from its pixels alone, window by window.

No trained model is needed: faces are compared by gradients and colours of their parts, which works for drawn people.
Mouths are left out, so that talking itself changes the figures little.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engine.evaluation.mouths import Floats

Pictures = npt.NDArray[np.uint8]
Where = npt.NDArray[np.bool_]

#: A face is compared at this size in pixels, with this many cells along a side and directions of gradients.
_SIDE, _CELLS, _DIRECTIONS = 32, 8, 8
#: Distances of two drawn people in the same place, which count as 1: the median of 90 pairs (30 held-out people against
#: each of three), of gradients relative to those of the picture, and of colours in CIE Lab.
_STRANGER_LINES, _STRANGER_COLOUR = 0.8, 25.0
#: Width of a mouth's box, and distance of its middle from its top, in half heights of the head
#: (scripts/train_tiny/people.py).
_MOUTH_WIDE, _MOUTH_BELOW_TOP = 0.96, 0.25
#: The compared part of a head, from the middle of the mouth: to each side, above and below, in half heights.
_ASIDE, _ABOVE, _BELOW = 0.95, 1.6, 0.55
#: How far a head is searched, in half heights.
_REACH = 0.25
#: Frames of a window that are used, evenly spaced.
_SAMPLED = 10
#: Parts of a video along a side whose colours are compared.
_PARTS = 8
#: Standard deviation in pixels of the blur that removes fine lines.
_FINE = 1.0
#: Shares of red, green and blue in the brightness.
LUMA = np.array([0.299, 0.587, 0.114], np.float32)


@dataclass(frozen=True)
class WindowLook:
    """How one window of a video compares with its source picture."""

    #: Contrast of fine lines relative to the picture's, without mouths: 1 is as sharp.
    sharpness: float
    #: Distance of the face from the picture's, the largest of several people: 0 is the same, 1 another person.
    identity: float
    #: Structural similarity (SSIM) with the picture, without mouths: 1 is the same.
    structure: float
    #: Mean colours of 8 x 8 parts of the video, CIE Lab: (64, 3).
    colours: Floats


@dataclass(frozen=True)
class Drift:
    """How much the worst window of a video differs from its first one, and from the picture."""

    #: Least sharpness of a window, relative to the first window's, and to the picture's.
    sharpness_kept: float
    sharpness: float
    #: Largest distance of a face from the picture's, and its increase since the first window.
    identity: float
    identity_grown: float
    #: By how much SSIM with the picture is lower in the worst window than in the first one.
    structure_lost: float
    #: Largest distance of a window's colours from the first window's, CIE Lab: the mean over its parts, so that colours
    #: that only move are noticed.
    colour: float


def window_looks(
    frames: Pictures,
    picture: Pictures,
    mouths: npt.ArrayLike,
    shares: Sequence[slice],
    *,
    seats: npt.ArrayLike = (),
) -> tuple[WindowLook, ...]:
    """Compare each window, its part of `frames` (F, H, W, 3), uint8 RGB, with the `picture`.

    `picture` (H, W, 3) is the source picture at the video's size; `mouths` (n, 4) are x0, y0, x1, y1 in pixels, one box
    around each mouth of the picture. If mouths are not known, `seats` (n, 4) are the people's parts of the picture,
    which are compared as a whole, including talking mouths. The figures are medians over up to 10 frames of a window,
    so that a blink has no effect. Raises ValueError for pictures of another size.
    """
    if picture.shape != frames.shape[1:]:
        raise ValueError(f"a picture of {picture.shape[:2]} is not of the video's size {frames.shape[1:3]}")
    boxes = np.asarray(mouths, np.float64).reshape(-1, 4)
    outside = _outside(picture, boxes)
    faces = [Face.of_mouth(picture, box) for box in boxes]
    faces += [Face.of_seat(picture, box) for box in np.asarray(seats, np.float64).reshape(-1, 4)]
    fine = fineness(picture, outside)
    looks = []
    for share in shares:
        begin, end, _ = share.indices(len(frames))
        if end <= begin:
            continue
        sampled = frames[np.unique(np.linspace(begin, end - 1, min(end - begin, _SAMPLED)).round().astype(int))]
        apart = [float(np.median([face.distance(frame) for frame in sampled])) for face in faces]
        looks.append(
            WindowLook(
                sharpness=float(np.median([fineness(frame, outside) for frame in sampled])) / max(fine, 1e-6),
                identity=max(apart, default=0.0),
                structure=float(np.median([_likeness(frame, picture, outside) for frame in sampled])),
                colours=_colours(sampled),
            )
        )
    return tuple(looks)


def drift_of(looks: Sequence[WindowLook]) -> Drift:
    """Return how much the worst of some windows differs from the first one. Raises ValueError if there is no window."""
    if not looks:
        raise ValueError("no window")
    first = looks[0]
    return Drift(
        sharpness_kept=min(look.sharpness for look in looks) / max(first.sharpness, 1e-6),
        sharpness=min(look.sharpness for look in looks),
        identity=max(look.identity for look in looks),
        identity_grown=max(look.identity for look in looks) - first.identity,
        structure_lost=first.structure - min(look.structure for look in looks),
        colour=max(colour_distance(look, first) for look in looks),
    )


def colour_distance(look: WindowLook, other: WindowLook) -> float:
    """Return the colour distance of two windows, CIE Lab: the mean of their parts' distances."""
    return float(np.linalg.norm(look.colours - other.colours, axis=1).mean())


class Face:
    """One face of the picture, without its mouth; finds the face again in frames where the head has moved."""

    def __init__(
        self, picture: Pictures, box: npt.NDArray[np.float64], eyes: npt.NDArray[np.float64], reach: int, talks: Where
    ) -> None:
        """Take x0, y0, x1, y1 of the compared part and of the part to search for, and the cells to leave out."""
        self._box, self._eyes, self._reach = box, eyes, reach
        self._template = _crop(picture, eyes) @ LUMA
        self._still = ~talks
        self._lines, self._colours = self._features(picture, (0, 0))

    @classmethod
    def of_mouth(cls, picture: Pictures, mouth: npt.NDArray[np.float64]) -> Face:
        """Use the head around a mouth's box."""
        x0, y0, x1, _ = mouth
        unit = max((x1 - x0) / _MOUTH_WIDE, 8.0)
        x, y = (x0 + x1) / 2, y0 + _MOUTH_BELOW_TOP * unit
        box = np.array([x - _ASIDE * unit, y - _ABOVE * unit, x + _ASIDE * unit, y + _BELOW * unit])
        # Eyes, brows and nose show where the head is.
        eyes = np.array([x - 0.75 * unit, y - 1.2 * unit, x + 0.75 * unit, y - _MOUTH_BELOW_TOP * unit])
        columns, rows = (
            (np.arange(_CELLS) + 0.5) / _CELLS * (box[axis + 2] - box[axis]) + box[axis] for axis in (0, 1)
        )
        talks = (rows[:, None] > y - 0.3 * unit) & (np.abs(columns - x) < 0.38 * unit)
        return cls(picture, box, eyes, int(np.ceil(_REACH * unit)), talks)

    @classmethod
    def of_seat(cls, picture: Pictures, seat: npt.NDArray[np.float64]) -> Face:
        """Use a person's whole part of the picture."""
        return cls(picture, seat, seat, 0, np.zeros((_CELLS, _CELLS), bool))

    def distance(self, frame: Pictures) -> float:
        """Return the distance of a frame's face from the picture's: 0 is the same, 1 another person."""
        lines, colours = self._features(frame, self._face_found(frame))
        energy = max(float(np.linalg.norm(self._lines)), 1e-6)
        line_distance = float(np.linalg.norm(lines - self._lines)) / energy
        tint_distance = float(np.linalg.norm(colours - self._colours, axis=-1).mean())
        return (line_distance / _STRANGER_LINES + tint_distance / _STRANGER_COLOUR) / 2

    def _face_found(self, frame: Pictures) -> tuple[int, int]:
        if not self._reach:
            return 0, 0
        from skimage.feature import match_template

        around = _crop(frame, self._eyes, self._reach) @ LUMA
        scores = match_template(around, self._template)  # type: ignore[no-untyped-call]
        y, x = np.unravel_index(int(scores.argmax()), scores.shape)
        return int(x) - self._reach, int(y) - self._reach

    def _features(self, frame: Pictures, moved: tuple[int, int]) -> tuple[Floats, Floats]:
        """Return gradients by direction and mean colours of the still cells: (cells, directions) and (cells, 3)."""
        from PIL import Image
        from scipy.ndimage import gaussian_filter
        from skimage.color import rgb2lab

        face = Image.fromarray(_crop(frame, self._box + np.tile(moved, 2)))
        pixels = np.asarray(face.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR))
        down, right = np.gradient(gaussian_filter((pixels / 255).astype(np.float32) @ LUMA, 0.7))
        strength = np.hypot(right, down)
        # A line looks the same from both sides, so directions cover half a turn; a gradient counts for both neighbours.
        angle = np.arctan2(down, right) % np.pi / np.pi * _DIRECTIONS
        near = np.maximum(1 - np.abs((angle[..., None] - np.arange(_DIRECTIONS) + 4) % _DIRECTIONS - 4), 0)
        cell = _SIDE // _CELLS
        width = (0.7 * cell, 0.7 * cell, 0)
        middles = slice(cell // 2, None, cell)
        lines = gaussian_filter(strength[..., None] * near, width)[middles, middles]
        colours = gaussian_filter(rgb2lab(pixels), width)[middles, middles]
        return lines[self._still].astype(np.float32), colours[self._still].astype(np.float32)


def _crop(frame: Pictures, box: npt.NDArray[np.float64], more: int = 0) -> Pictures:
    """Return the pixels of a box and `more` on each side; beyond the frame, edge pixels are repeated."""
    x0, y0, x1, y1 = np.rint(box).astype(int)
    rows, columns = np.arange(y0 - more, y1 + more), np.arange(x0 - more, x1 + more)
    cropped: Pictures = frame.take(rows, 0, mode="clip").take(columns, 1, mode="clip")
    return cropped


def _outside(picture: Pictures, boxes: npt.NDArray[np.float64]) -> Where:
    outside = np.ones(picture.shape[:2], bool)
    for x0, y0, x1, y1 in np.rint(boxes).astype(int):
        outside[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)] = False
    return outside


def fineness(frame: Pictures, where: Where | None = None) -> float:
    """Return the contrast of fine lines of a frame (H, W, 3) in grey levels: of all of it, or where `where` is true."""
    from scipy.ndimage import gaussian_filter

    light = frame.astype(np.float32) @ LUMA
    fine = np.abs(light - gaussian_filter(light, _FINE))
    return float((fine if where is None else fine[where]).mean())


def _likeness(frame: Pictures, picture: Pictures, where: Where) -> float:
    from skimage.metrics import structural_similarity

    one, other = (pixels.astype(np.float32) @ LUMA for pixels in (frame, picture))
    _, near = structural_similarity(  # type: ignore[no-untyped-call]
        one, other, data_range=255, gaussian_weights=True, full=True
    )
    return float(near[where].mean())


def _colours(frames: Pictures) -> Floats:
    from skimage.color import rgb2lab

    whole = np.mean([rgb2lab(frame) for frame in frames], 0)
    rows = (np.array_split(part, _PARTS, 1) for part in np.array_split(whole, _PARTS, 0))
    return np.array([part.mean((0, 1)) for row in rows for part in row], np.float32)
