"""Widen or narrow the boxes of found people to the outlines of their bodies, which OpenCV's GrabCut separates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from engine.data import Found
from engine.people.found import Picture

#: Longer side in pixels of the picture in which outlines are searched.
SIDE = 320
#: Least width of a face in its heights: one in profile is narrow, its shoulders are not.
_FACE = 0.75
#: Least share of the tallest column of an outline: thinner parts are spills, such as a tripod.
_THIN = 0.15
#: Half of the middle of a body, which an outline cannot narrow, in widths of the face.
_MIDDLE = 0.9


def outlined(picture: Picture, people: Sequence[Found]) -> tuple[Found, ...]:
    """Return the people, from left to right, with boxes as wide as their outlines; their boxes never overlap more.

    The parts that hang together with the face count (Rother and others, 2004, with marks by the proportions of a body).
    The border between two neighbours is in the middle between their faces. Someone above or below another keeps the
    box. Needs OpenCV.
    """
    import cv2

    scale = SIDE / max(picture.shape[:2])
    width, height = (max(16, round(side * scale)) for side in picture.shape[1::-1])
    small = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
    result = []
    for index, person in enumerate(people):
        x0, y0, x1, y1 = person.face
        tall, across = y1 - y0, (x0 + x1) / 2
        wide = max(x1 - x0, _FACE * tall * height / width)
        left = (people[index - 1].face[2] + x0) / 2 if index else 0.0
        right = (x1 + people[index + 1].face[0]) / 2 if index + 1 < len(people) else 1.0
        if not left <= x0 < x1 <= right:
            result.append(person)
            continue
        marks = np.full((height, width), cv2.GC_BGD, np.uint8)
        for half, top, bottom, mark in (
            (2.4, y0 - 0.6 * tall, 1.0, cv2.GC_PR_BGD),
            (1.2, y1 + 0.3 * tall, 1.0, cv2.GC_PR_FGD),
            (0.7, y0 - 0.3 * tall, y1 + 0.3 * tall, cv2.GC_PR_FGD),
            (0.35, y0 + 0.1 * tall, 1.0, cv2.GC_FGD),
        ):
            columns = slice(int(max(across - half * wide, left) * width), int(min(across + half * wide, right) * width))
            marks[int(max(top, 0) * height) : int(bottom * height), columns] = mark
        # Its clusters begin with random pixels.
        cv2.setRNGSeed(0)
        cv2.grabCut(small, marks, (0, 0, 0, 0), np.zeros((1, 65)), np.zeros((1, 65)), 5, cv2.GC_INIT_WITH_MASK)
        inner = ((marks == cv2.GC_FGD) | (marks == cv2.GC_PR_FGD)).astype(np.uint8)
        labels = cv2.connectedComponents(inner)[1]
        outline = labels == labels[min(int((y0 + y1) / 2 * height), height - 1), min(int(across * width), width - 1)]
        counts = outline.sum(0)
        shown = np.flatnonzero(counts >= _THIN * counts.max())
        edges = (float(shown.min()) / width, float(shown.max() + 1) / width)
        x0 = max(left, 0.0, min(edges[0], across - _MIDDLE * wide))
        x1 = min(right, 1.0, max(edges[1], across + _MIDDLE * wide))
        result.append(replace(person, box=(round(x0, 4), person.box[1], round(x1, 4), person.box[3]), finder="people"))
    return tuple(result)
