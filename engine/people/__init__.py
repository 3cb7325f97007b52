"""Find the people in a picture: `find_people(picture)`. Imports no torch.

>>> from engine.people import find_people
>>> people = find_people("photograph.jpg")   # a path, a PIL picture or uint8 RGB (height, width, 3)
>>> [(person.box, person.score, person.finder) for person in people]
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from engine.data import Found as Found  # re-exported
from engine.errors import RequestError

if TYPE_CHECKING:
    from engine.people.found import Picture


class Named(Protocol):
    """A component's config."""

    @property
    def name(self) -> str:
        """The name that users choose."""
        ...


#: Names for `find_people`.
FINDERS = ("auto", "faces", "people", "drawn")


def find_people(picture: Any, finder: str = "auto") -> tuple[Found, ...]:
    """Return the people in a picture from left to right, with their boxes as fractions of the upright picture.

    `picture` is a path, a PIL picture or an array, uint8 RGB (height, width, 3). `finder` is "faces" (photographs; the
    extra `people`), "people" (the same, with boxes as wide as the outlines of the bodies), "drawn" (drawn people, as
    the embedded model knows them) or "auto": drawn people, and if there are none, faces if the extra is installed.
    Raises RequestError for a picture that cannot be read and for an unknown finder, MissingExtra for "faces" and
    "people" without the extra.
    """
    from engine.people import faces

    if finder not in FINDERS:
        raise RequestError(f"{finder!r} is not a finder", field="regions", hint=f"choose {' or '.join(FINDERS)}")
    pixels = _pixels(picture)
    found: tuple[Found, ...] = ()
    if finder in ("auto", "drawn"):
        found = find_drawn(pixels)
    if finder in ("faces", "people") or (finder == "auto" and not found and faces.installed()):
        found = faces.find_faces(pixels)
    if finder == "people":
        from engine.people.outlines import outlined

        found = outlined(pixels, found)
    return found


class PeopleFinder:
    """One of `FINDERS` as the component of a plugin: `find_people` by the name in the component's config."""

    looks = True

    def __init__(self, config: Named) -> None:
        self._name = config.name

    def find(self, picture: Any) -> tuple[Found, ...]:
        """See `engine.components.RegionFinder`. Raises MissingExtra."""
        return find_people(picture, self._name)


def find_drawn(picture: Picture) -> tuple[Found, ...]:
    """Return the drawn people in a picture, uint8 RGB (height, width, 3), from left to right."""
    from engine.people import drawn
    from engine.people.found import persons

    height, width = picture.shape[:2]
    shown = []
    for head in drawn.heads(picture):
        if not drawn.has_skin(picture, head):
            continue
        score, x, y, radius = head
        # The face within a head: without hair, as finders of faces in photographs see it.
        face = (x - 0.7 * radius, y - 0.7 * radius, x + 0.7 * radius, y + radius)
        box = (max(0.0, face[0]), max(0.0, face[1]), min(float(width), face[2]), min(float(height), face[3]))
        shown.append((box, float(1 / (1 + math.exp(-score)))))
    return persons(shown, (height, width), "drawn")


def _pixels(picture: Any) -> Picture:
    import numpy as np
    from PIL import Image

    from engine.media.picture import read_picture

    if isinstance(picture, str | Path):
        return read_picture(Path(picture), field="picture")
    pixels = np.asarray(picture.convert("RGB") if isinstance(picture, Image.Image) else picture)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise RequestError(
            f"{pixels.dtype} {pixels.shape} is not a picture", field="picture", hint="give uint8 (height, width, 3)"
        )
    return pixels
