"""The regions that a request leaves to the engine become boxes of found people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from engine.cancel import apart
from engine.components import CancelToken
from engine.config import Config
from engine.data import Found, Media, Region, Request
from engine.errors import RequestError
from engine.media.canvas import THRESHOLD
from engine.media.picture import read_mask, read_picture
from engine.plugin.manager import Registry

Box = tuple[float, float, float, float]


class TooFewPeople(RequestError):
    """Fewer people were found than there are voices; it carries what a preview shows."""

    def __init__(self, message: str, *, people: Sequence[Found], media: Media, hint: str) -> None:
        super().__init__(message, field="request.speakers", hint=hint, code="bad_region")
        self.people = tuple(people)
        self.media = media


def find_regions(
    request: Request, media: Media, config: Config, registry: Registry, *, cancel: CancelToken | None = None
) -> tuple[Request, Media]:
    """Return the request with a box for each automatic region, and `media` with what is to be told about it.

    Nothing changes for a finder that does not look, such as regions=equal, and for a single speaker, whose voice moves
    the whole picture (except where a source video is kept outside the speaker). Raises TooFewPeople, RequestError,
    MissingExtra and Cancelled.
    """
    automatic = [
        index for index, one in enumerate(request.speakers) if one.region.box is None and one.region.mask is None
    ]
    alone = len(request.speakers) == 1 and not (request.video and config.dub.mode == "keep")
    finder = registry.regions.build(config.regions)
    if not automatic or alone or not finder.looks:
        return request, media

    def look() -> tuple[tuple[Found, ...] | None, list[Box]]:
        picture = read_picture(media.image, field="request.video" if request.video else "request.image")
        found = finder.find(picture)
        taken = [_taken(one.region, file, media) for one, file in zip(request.speakers, media.masks, strict=True)]
        return found, [box for box in taken if box is not None]

    found, taken = apart(look, cancel, "read")
    name = config.regions.name
    if found is None:
        what = f"regions={name}: nobody was found, and the picture is divided into equal parts"
        warning = f"{what}; look at --preview, give boxes by hand, or install the extra 'people' for photographs"
        return request, replace(media, warnings=(*media.warnings, warning))
    free = [person for person in found if not any(_inside(person.face, box) for box in taken)]
    if len(free) < len(automatic):
        others = f" outside the given regions of {len(taken)} other(s)" if taken else ""
        raise TooFewPeople(
            f"regions={name} found {len(free)} {'person' if len(free) == 1 else 'people'}{others}, and "
            f"{len(automatic)} speakers need a region",
            people=found,
            media=media,
            hint="look at --preview who.png; give the others' region: {box: [x0, y0, x1, y1]}, or use regions=equal",
        )
    largest = sorted(free, key=lambda person: -_area(person.face))[: len(automatic)]
    chosen = sorted(largest, key=lambda person: person.face[0] + person.face[2])
    left_out = tuple(person for person in free if person not in chosen)
    speakers, told = list(request.speakers), []
    for index, person in zip(automatic, chosen, strict=True):
        box = person.box
        for other in taken:
            box = _beside(box, person.face, other)
        speakers[index] = replace(speakers[index], region=Region(box=box, found=person.finder))
        told.append(f"speaker {index + 1} at [{', '.join(f'{edge:g}' for edge in box)}]")
    warnings = [f"regions={name}: found by {chosen[0].finder!r}: {', '.join(told)}"]
    if left_out:
        warnings.append(
            f"regions={name} found {len(free)} people for {len(automatic)} voices: the largest were taken; "
            "look at --preview, and give boxes by hand if others speak"
        )
    return replace(request, speakers=tuple(speakers)), replace(
        media, warnings=(*media.warnings, *warnings), silent_people=left_out
    )


def _taken(region: Region, mask: Path | None, media: Media) -> Box | None:
    """Return the box of a given region as fractions of the picture; None: it is automatic."""
    width, height = media.image_size
    if mask is not None:
        rows, columns = np.nonzero(read_mask(mask, field="request.speakers") >= THRESHOLD)
        if not rows.size:
            return None
        x0, x1, y0, y1 = columns.min(), columns.max() + 1, rows.min(), rows.max() + 1
        return float(x0 / width), float(y0 / height), float(x1 / width), float(y1 / height)
    if region.box is None or max(region.box) <= 1:
        return region.box
    x0, y0, x1, y1 = region.box
    return x0 / width, y0 / height, x1 / width, y1 / height


def _inside(face: Box, box: Box) -> bool:
    x, y = (face[0] + face[2]) / 2, (face[1] + face[3]) / 2
    return box[0] <= x <= box[2] and box[1] <= y <= box[3]


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _beside(box: Box, face: Box, other: Box) -> Box:
    """Return the largest part of `box` with the middle of `face` that does not overlap `other`."""
    x0, y0, x1, y1 = box
    if min(x1, other[2]) <= max(x0, other[0]) or min(y1, other[3]) <= max(y0, other[1]):
        return box
    x, y = (face[0] + face[2]) / 2, (face[1] + face[3]) / 2
    parts = []
    if other[0] > x:
        parts.append((x0, y0, other[0], y1))
    if other[2] < x:
        parts.append((other[2], y0, x1, y1))
    if other[1] > y:
        parts.append((x0, y0, x1, other[1]))
    if other[3] < y:
        parts.append((x0, other[3], x1, y1))
    return max(parts, key=_area, default=box)
