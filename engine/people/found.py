"""How a face becomes the region of a person."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from engine.data import Found

Box = tuple[float, float, float, float]
#: uint8 RGB (height, width, 3).
Picture = npt.NDArray[np.uint8]

#: In heights of a face, from eyebrows or hairline to chin: hair above it, body below its top, half of the shoulders.
_HAIR, _BODY, _SHOULDERS = 0.6, 8.0, 1.3


def persons(faces: Sequence[tuple[Box, float]], shape: tuple[int, int], finder: str) -> tuple[Found, ...]:
    """Return the people who have these faces, from left to right, in boxes that do not overlap.

    `faces` holds boxes in pixels with their scores, `shape` is (height, width). A box covers hair, shoulders and body,
    down to the end of the picture or to eight heights of the face. Between neighbours it ends where the distance to
    both faces is the same share of their sizes; people one above the other are divided at the lower one's hair.
    """
    height, width = shape
    order = sorted(faces, key=lambda entry: entry[0][0] + entry[0][2])
    boxes = [_grown(face, shape) for face, _ in order]
    for first in range(len(order)):
        for second in range(first + 1, len(order)):
            boxes[first], boxes[second] = _apart(boxes[first], boxes[second], order[first][0], order[second][0])
    scale = (width, height, width, height)

    def shares(box: Sequence[float]) -> Box:
        # Rounded, so that a box survives being written and read.
        x0, y0, x1, y1 = (round(min(max(edge / size, 0.0), 1.0), 4) for edge, size in zip(box, scale, strict=True))
        return x0, y0, x1, y1

    return tuple(
        Found(shares(box), shares(face), round(score, 3), finder)
        for box, (face, score) in zip(boxes, order, strict=True)
    )


def _grown(face: Box, shape: tuple[int, int]) -> Box:
    x0, y0, x1, y1 = face
    tall, middle = y1 - y0, (x0 + x1) / 2
    reach = max(_SHOULDERS * tall, x1 - x0)
    return (
        max(0.0, middle - reach),
        max(0.0, y0 - _HAIR * tall),
        min(float(shape[1]), middle + reach),
        min(float(shape[0]), y0 + _BODY * tall),
    )


def _apart(left: Box, right: Box, one: Box, other: Box) -> tuple[Box, Box]:
    if min(left[2], right[2]) <= max(left[0], right[0]) or min(left[3], right[3]) <= max(left[1], right[1]):
        return left, right
    if one[2] <= other[0]:
        gap, wide, narrow = other[0] - one[2], one[2] - one[0], other[2] - other[0]
        edge = one[2] + gap * wide / (wide + narrow)
        return (left[0], left[1], min(left[2], edge), left[3]), (max(right[0], edge), *right[1:])
    # Faces above each other: the upper person ends where the lower one's hair begins.
    if one[1] <= other[1]:
        edge = max(one[3], min(right[1], other[1]))
        return (left[0], left[1], left[2], min(left[3], edge)), (right[0], max(right[1], edge), *right[2:])
    edge = max(other[3], min(left[1], one[1]))
    return (left[0], max(left[1], edge), *left[2:]), (right[0], right[1], right[2], min(right[3], edge))
