"""Cartoon people: how one looks, how one holds the head, and how one is drawn."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from scripts.train_tiny import hair

if TYPE_CHECKING:
    from PIL import ImageDraw

Colour = tuple[int, int, int]
Points = npt.NDArray[np.float64]
Tint = Callable[[Colour], Colour]

#: From light to dark; a person's skin class is an index of this.
SKINS: tuple[Colour, ...] = (
    (255, 226, 200),
    (243, 199, 162),
    (224, 172, 125),
    (190, 128, 82),
    (140, 86, 54),
    (98, 60, 42),
)
#: Lips stand off each skin, lighter on the darkest and darker on all others: the same at night, as the tint is common.
_LIPS: tuple[tuple[Colour, ...], ...] = (
    ((214, 92, 98), (190, 70, 84), (222, 110, 96)),
    ((200, 80, 84), (178, 58, 70), (206, 94, 80)),
    ((182, 66, 66), (160, 48, 60), (190, 78, 70)),
    ((140, 44, 48), (128, 40, 60), (150, 52, 44)),
    ((72, 12, 22), (78, 16, 20), (70, 10, 34)),
    ((206, 108, 104), (208, 96, 112), (200, 116, 98)),
)
_HAIRS: tuple[Colour, ...] = (
    (38, 30, 32), (66, 42, 28), (104, 62, 34), (156, 98, 46),
    (222, 178, 96), (190, 78, 38), (176, 172, 170), (92, 60, 120),
)  # fmt: skip
_CLOTHES: tuple[Colour, ...] = (
    (206, 66, 72), (58, 104, 176), (70, 146, 104), (236, 178, 66), (136, 84, 158), (238, 238, 232),
    (52, 58, 78), (230, 128, 92), (92, 178, 190), (168, 188, 90), (226, 146, 172),
)  # fmt: skip
_EYES: tuple[Colour, ...] = ((74, 48, 34), (58, 96, 150), (70, 122, 82), (110, 76, 40), (62, 66, 74))
_INSIDE: Colour = (44, 8, 16)
_TONGUE: Colour = (190, 74, 82)
_TEETH: Colour = (252, 250, 244)

#: The mouth's box round its middle, in head heights' halves: room for the widest mouth and for a moving head.
MOUTH_LEFT, MOUTH_TOP, MOUTH_BOTTOM = 0.48, 0.25, 0.46

_TURN = np.linspace(0, 2 * np.pi, 48, endpoint=False)
_DISC = np.stack([np.cos(_TURN[::2]), np.sin(_TURN[::2])], 1)
_ACROSS = np.sin(np.linspace(-np.pi / 2, np.pi / 2, 15))
_DOME = (1 - _ACROSS**2) ** 0.6


@dataclass(frozen=True)
class Mouth:
    """What a mouth does: how far it is open and how broad it is, each 0 to 1."""

    opening: float = 0.0
    width: float = 0.4


@dataclass(frozen=True)
class Pose:
    """Where a head is: offsets in halves of its height, tilt in radians, the face's turn and nod from -1 to 1."""

    x: float
    y: float
    tilt: float
    turn: float
    nod: float
    eyes: float
    """How far the eyes are open, 0 to 1."""


@dataclass(frozen=True)
class Person:
    """A person's look and place. `x`, `y` and `radius` are the head's middle and half height in pixels."""

    x: float
    y: float
    radius: float
    skin: int
    colours: dict[str, Colour]
    outline: Points
    """The head's, 48 points about its middle, in halves of its height."""
    hairstyle: str
    clothes: str
    glasses: str
    earrings: bool
    eye: tuple[float, float, float]
    """Distance from the middle, height above it, radius."""
    nose: int
    mouth: tuple[float, float, float]
    """How far below the middle, half width, thickness of the lips."""
    smile: float
    """From -1, sad, to 1, happy."""
    motion: npt.NDArray[np.float64]
    """Sines of the five degrees of freedom: (5, 2, 3) amplitudes, frequencies in Hz, phases."""
    blinks: npt.NDArray[np.float64]
    """16 places of a blink within its interval, which repeat; 0 to 1."""
    blink_interval: float

    def pose(self, time: float) -> Pose:
        """Return where the head is at `time` seconds."""
        amplitude, frequency, phase = self.motion[..., 0], self.motion[..., 1], self.motion[..., 2]
        x, y, tilt, turn, nod = (amplitude * np.sin(2 * np.pi * frequency * time + phase)).sum(1)
        number = math.floor(time / self.blink_interval)
        at = (number + 0.15 + 0.7 * self.blinks[number % 16]) * self.blink_interval
        eyes = min(max((abs(time - at) - 0.03) / 0.09, 0.0), 1.0)
        return Pose(float(x), float(y), float(tilt), float(turn), float(nod), eyes)

    def place(self, pose: Pose, points: Points) -> Points:
        """Return pixels for points of the head (n, 2), in halves of its height about its middle."""
        # The head tilts about the neck, one half height below its middle.
        cos, sin = math.cos(pose.tilt), math.sin(pose.tilt)
        x, y = points[:, 0], points[:, 1] - 1
        turned = np.stack([cos * x - sin * y + pose.x, sin * x + cos * y + 1 + pose.y], 1)
        return turned * self.radius + (self.x, self.y)

    def mouth_box(self, time: float) -> npt.NDArray[np.float64]:
        """Return x0, y0, x1, y1 in pixels of the box in which the mouth opens at `time`."""
        pose = self.pose(time)
        middle = np.array([[0.10 * pose.turn, self.mouth[0] + 0.06 * pose.nod]])
        x, y = self.place(pose, middle)[0]
        r = self.radius
        return np.array([x - MOUTH_LEFT * r, y - MOUTH_TOP * r, x + MOUTH_LEFT * r, y + MOUTH_BOTTOM * r])

    def face_box(self) -> npt.NDArray[np.float64]:
        """Return x0, y0, x1, y1 in pixels of head, hair and shoulders."""
        r = self.radius
        return np.array([self.x - 1.05 * r, self.y - 1.2 * r, self.x + 1.05 * r, self.y + 1.35 * r])


def random_person(
    rng: np.random.Generator, x: float, y: float, radius: float, *, smile: float, energy: float, tint: Tint
) -> Person:
    """Return somebody at a place; `energy` (about 0.3 to 1) scales the head's movement, `tint` is the scene's light."""
    skin = int(rng.integers(len(SKINS)))
    shade = _jitter(rng, SKINS[skin], 7)
    half = rng.uniform(0.76, 0.87)
    hair_colour = _jitter(rng, _HAIRS[int(rng.integers(len(_HAIRS)))], 12)
    if hair.distance(hair_colour, shade) < 50:
        hair_colour = _HAIRS[0]
    cloth, trim = (_CLOTHES[i] for i in rng.permutation(len(_CLOTHES))[:2])
    raw: dict[str, Colour] = {
        "skin": shade,
        "shade": hair.mix(shade, (90, 20, 20), 0.13),
        "blush": hair.mix(shade, (232, 92, 92), 0.2),
        "line": hair.mix(shade, (50, 14, 14), 0.45),
        "hair": hair_colour,
        "strand": hair.mix(hair_colour, (255, 236, 210), 0.16),
        "brow": hair.mix(hair_colour, (30, 16, 12), 0.45) if skin < 4 else (26, 18, 18),
        "iris": _EYES[int(rng.integers(len(_EYES)))],
        "white": (252, 252, 250),
        "pupil": (18, 16, 20),
        "lips": _LIPS[skin][int(rng.integers(3))],
        "inside": _INSIDE,
        "tongue": _TONGUE,
        "teeth": _TEETH,
        "cloth": _jitter(rng, cloth, 12),
        "trim": trim,
        "frame": ((34, 32, 40), (150, 44, 50), (208, 160, 70))[int(rng.integers(3))] if skin < 4 else (226, 190, 96),
        "gem": (250, 214, 96),
    }
    jaw, square = rng.uniform(0.0, 0.22), rng.uniform(0.82, 1.0)
    cos, sin = np.cos(_TURN), np.sin(_TURN)
    across = np.sign(cos) * np.abs(cos) ** square * half
    outline = np.stack([across * (1 - jaw * np.clip(sin, 0, 1) ** 2), np.sign(sin) * np.abs(sin) ** 0.95], 1)
    scale = np.array([0.03, 0.02, 0.035, 0.4, 0.5])[:, None] * energy * np.array([1, 0.5])
    motion = np.stack(
        [
            scale * rng.uniform(0.7, 1.3, (5, 2)),
            rng.uniform(0.15, 0.45, (5, 2)) * (0.6 + energy) * (1, 2),
            rng.uniform(0, 6.28, (5, 2)),
        ],
        -1,
    )
    return Person(
        x=x,
        y=y,
        radius=radius,
        skin=skin,
        colours={name: tint(colour) for name, colour in raw.items()},
        outline=outline,
        hairstyle=str(rng.choice(hair.STYLES)),
        clothes=str(rng.choice(("plain", "vee", "stripes", "collar", "scarf", "straps"))),
        glasses=str(rng.choice(("none", "none", "none", "round", "square"))),
        earrings=bool(rng.random() < 0.25),
        eye=(rng.uniform(0.31, 0.37), rng.uniform(0.08, 0.16), rng.uniform(0.125, 0.165)),
        nose=int(rng.integers(3)),
        mouth=(rng.uniform(0.45, 0.50), rng.uniform(0.30, 0.36), rng.uniform(0.07, 0.095)),
        smile=smile,
        motion=motion,
        blinks=rng.random(16),
        blink_interval=rng.uniform(1.8, 3.6),
    )


def draw_person(pen: ImageDraw.ImageDraw, person: Person, mouth: Mouth, time: float, mood: float, scale: int) -> None:
    """Draw a person at `time`; `mood` from 0 to 1 is how far the expression has grown, `scale` the canvas's pixels."""
    pose = person.pose(time)
    c = person.colours
    r = person.radius * scale
    smile = person.smile * mood

    def fill(points: Points, colour: Colour) -> None:
        pen.polygon(np.rint(person.place(pose, points) * scale).ravel().tolist(), fill=colour)

    def line(points: Points, colour: Colour, thickness: float) -> None:
        placed = person.place(pose, points) * scale
        pen.line(placed.ravel().tolist(), fill=colour, width=max(1, round(thickness * r)), joint="curve")

    def disc(x: float, y: float, a: float, b: float, colour: Colour) -> None:
        fill(_DISC * (a, b) + (x, y), colour)

    head = person.outline.copy()
    head[:, 1] += 0.09 * mouth.opening * np.clip((head[:, 1] - 0.3) / 0.7, 0, 1)
    hair.draw_behind(fill, disc, person.hairstyle, person.outline, c)
    _draw_body(pen, person, pose, scale)
    half = float(person.outline[:, 0].max())
    if person.hairstyle not in hair.EARS_HIDDEN:
        for side in (-1, 1):
            disc(side * half, 0.02, 0.11, 0.17, c["shade"])
            if person.earrings:
                disc(side * (half + 0.03), 0.24, 0.05, 0.06, c["gem"])
    fill(head, c["skin"])
    turn, nod = 0.10 * pose.turn, 0.06 * pose.nod
    for side in (-1, 1):
        disc(0.47 * side + turn, 0.19 + nod, 0.13, 0.09, c["blush"])
    hair.draw_front(fill, disc, person.hairstyle, person.outline, 0.4 * turn, c)
    _draw_eyes(fill, line, disc, person, pose.eyes, (turn, nod), smile)
    nose = _ACROSS[:, None] * (0.07, 0) + np.stack([0 * _DOME, 0.05 * _DOME], 1)
    line(np.add(nose[2:-2], (1.25 * turn, 0.13 + 1.2 * nod)), c["line"], 0.035 + 0.005 * person.nose)
    _draw_mouth(fill, person, mouth, (turn, nod), smile)


def _draw_mouth(
    fill: Callable[[Points, Colour], None], person: Person, mouth: Mouth, shift: tuple[float, float], smile: float
) -> None:
    below, half, lip = person.mouth
    c, opening = person.colours, mouth.opening
    half *= (0.80 + 0.42 * mouth.width) * (1 + 0.08 * max(smile, 0) - 0.10 * opening)
    middle = 0.06 * smile - 0.13 * smile * _ACROSS**2 + below + shift[1]
    gap = 0.40 * opening
    x = _ACROSS * half + shift[0]
    top, bottom = middle - (0.32 * gap + 0.016) * _DOME, middle + (0.68 * gap + 0.016) * _DOME
    bow = 1 - 0.3 * np.exp(-((_ACROSS / 0.2) ** 2))
    outer = x + 0.035 * _ACROSS
    fill(_between(outer, top - lip * 0.85 * _DOME * bow - 0.008, bottom + lip * 1.15 * _DOME + 0.008), c["lips"])
    fill(_between(x, top, bottom), c["inside"])
    inner = slice(2, -2)
    # Tongue and teeth grow out of nothing, so that nothing jumps as the mouth opens.
    tongue = max(0.42 * gap - 0.04, 0)
    if tongue > 0:
        fill(
            _between((0.75 * (x - shift[0]) + shift[0])[inner], (bottom - tongue * _DOME)[inner], bottom[inner]),
            c["tongue"],
        )
    teeth = min(max(0.45 * gap - 0.02, 0), 0.08)
    if teeth > 0:
        fill(
            _between((0.86 * (x - shift[0]) + shift[0])[inner], top[inner], (top + teeth * _DOME**0.5)[inner]),
            c["teeth"],
        )


def _draw_eyes(
    fill: Callable[[Points, Colour], None],
    line: Callable[[Points, Colour, float], None],
    disc: Callable[[float, float, float, float, Colour], None],
    person: Person,
    lids: float,
    shift: tuple[float, float],
    smile: float,
) -> None:
    apart, above, size = person.eye
    c = person.colours
    for side in (-1, 1):
        x, y = side * apart + shift[0], shift[1] - above
        height = size * (1.1 * lids + 0.02)
        arch = np.stack([_ACROSS * size * 1.12, -_DOME * height], 1)
        if lids > 0.15:
            disc(x, y, size, height, c["white"])
            for part, name in ((0.68, "iris"), (0.36, "pupil")):
                round_ = _DISC * part * size + (0.25 * shift[0], 0)
                limit = height * np.sqrt(np.clip(1 - (round_[:, 0] / size) ** 2, 0, 1))
                round_[:, 1] = np.clip(round_[:, 1], -limit, limit)
                fill(np.add(round_, (x, y)), c[name])
            if lids > 0.6:
                disc(x - 0.25 * size, y - 0.3 * size, 0.2 * size, 0.2 * size, c["white"])
        else:
            arch[:, 1] = 0.25 * size * _DOME
        line(np.add(arch, (x, y)), c["brow"], 0.05)
        if person.glasses == "round":
            line(np.vstack([_DISC, _DISC[:2]]) * size * 1.5 + (x, y), c["frame"], 0.055)
        elif person.glasses == "square":
            corners = np.array([(-1, -0.8), (1, -0.8), (0.9, 0.9), (-0.9, 0.9), (-1, -0.8), (1, -0.8)])
            line(corners * size * 1.5 + (x, y), c["frame"], 0.055)
        # Sad brows rise towards the middle, happy ones are high and round.
        inwards = -side * _ACROSS
        brow_y = -1.85 * size - 0.04 * abs(smile) - 0.05 * _DOME * (1 + smile) + 0.09 * min(smile, 0) * inwards
        line(np.stack([_ACROSS * size * 1.15 + x, brow_y + y], 1), c["brow"], 0.075)
    if person.glasses != "none":
        inner = apart - 1.5 * size
        line(np.array([(-inner + shift[0], shift[1] - above), (inner + shift[0], shift[1] - above)]), c["frame"], 0.055)


def _draw_body(pen: ImageDraw.ImageDraw, person: Person, pose: Pose, scale: int) -> None:
    c = person.colours
    r = person.radius * scale
    # The chest follows the head a little.
    middle = np.array([person.x, person.y]) * scale + np.array([0.3 * pose.x, 0.2 * pose.y]) * r

    def fill(points: Points, colour: Colour) -> None:
        pen.polygon(np.rint(points * r + middle).ravel().tolist(), fill=colour)

    lean = np.array([0.35 * pose.x, 0])
    neck = np.array([(-0.27, 0.6), (0.27, 0.6), (0.30, 1.35), (-0.30, 1.35)]) + lean * [(1,), (1,), (0,), (0,)]
    sleeve = np.stack([1.22 * np.sin(_TURN / 4), 1.95 - 0.72 * np.cos(_TURN / 4) ** 0.8], 1)
    body = np.vstack([sleeve, [(1.25, 6), (-1.25, 6)], sleeve[::-1] * (-1, 1)])
    fill(body, c["cloth"])
    if person.clothes == "stripes":
        for row in (1.65, 1.95, 2.25, 2.55, 2.85):
            half = float(np.interp(row, sleeve[:, 1], sleeve[:, 0]))
            fill(np.array([(-half, row), (half, row), (half, row + 0.13), (-half, row + 0.13)]), c["trim"])
    if person.clothes == "straps":
        for side in (-1, 1):
            fill(np.array([(0.42, 1.25), (0.66, 1.3), (0.66, 6), (0.42, 6)]) * (side, 1), c["trim"])
        fill(np.array([(-0.66, 1.9), (0.66, 1.9), (0.66, 6), (-0.66, 6)]), c["trim"])
    if person.clothes == "vee":
        fill(np.array([(-0.42, 1.25), (0.42, 1.25), (0, 2.0)]), c["trim"])
        fill(np.array([(-0.29, 1.2), (0.29, 1.2), (0, 1.8)]), c["skin"])
    fill(neck, c["shade"])
    fill(_DISC * (0.32, 0.16) + (0, 1.32), c["shade"])
    if person.clothes == "collar":
        for side in (-1, 1):
            fill(np.array([(0.30, 1.12), (0.52, 1.25), (0.34, 1.68), (0.0, 1.46)]) * (side, 1), c["trim"])
    if person.clothes == "scarf":
        fill(_DISC * (0.52, 0.22) + (0, 1.30), c["trim"])
        fill(np.array([(0.1, 1.35), (0.42, 1.35), (0.5, 2.2), (0.2, 2.2)]), c["trim"])


def _between(x: npt.NDArray[np.float64], top: npt.NDArray[np.float64], bottom: npt.NDArray[np.float64]) -> Points:
    return np.stack([np.concatenate([x, x[::-1]]), np.concatenate([top, bottom[::-1]])], 1)


def _jitter(rng: np.random.Generator, colour: Colour, by: int) -> Colour:
    red, green, blue = (int(np.clip(part + rng.integers(-by, by + 1), 0, 255)) for part in colour)
    return red, green, blue
