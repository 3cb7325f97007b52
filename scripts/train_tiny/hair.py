"""Hair and head-dresses of the cartoon people, and the mixing of their colours."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

Colour = tuple[int, int, int]
Points = npt.NDArray[np.float64]
Fill = Callable[[Points, Colour], None]
Disc = Callable[[float, float, float, float, Colour], None]

STYLES = ("short", "swept", "parted", "long", "bob", "bun", "afro", "curly", "bald", "beanie", "scarf", "pigtails")
EARS_HIDDEN = frozenset(("long", "bob", "scarf"))


def mix(one: Colour, other: Colour, part: float) -> Colour:
    """Return `one` blended with `part` (0 to 1) of `other`."""
    red, green, blue = (round(a + (b - a) * part) for a, b in zip(one, other, strict=True))
    return red, green, blue


def distance(one: Colour, other: Colour) -> float:
    """Return the Euclidean distance of two colours, 0 to about 440."""
    return float(np.linalg.norm(np.subtract(one, other)))


def draw_behind(fill: Fill, disc: Disc, style: str, outline: Points, colours: Mapping[str, Colour]) -> None:
    """Draw what is behind head and shoulders."""
    half = float(outline[:, 0].max())
    colour = colours["hair"]
    if style in ("long", "bob"):
        bottom = 1.5 if style == "long" else 0.75
        disc(0, -0.16, half + 0.2, 1.0, colour)
        fill(
            np.array([(-half - 0.2, -0.16), (half + 0.2, -0.16), (half + 0.12, bottom), (-half - 0.12, bottom)]), colour
        )
        for side in (-1, 1):
            disc(side * (half - 0.12), bottom, 0.24, 0.16, colour)
    elif style == "bun":
        disc(0, -1.16, 0.34, 0.3, colour)
    elif style == "afro":
        disc(0, -0.38, half + 0.36, 1.02, colour)
    elif style == "pigtails":
        for side in (-1, 1):
            disc(side * (half + 0.24), -0.1, 0.26, 0.42, colour)
    elif style == "scarf":
        disc(0, 0.02, half + 0.24, 1.2, colours["trim"])
        fill(np.array([(-half - 0.2, 0.3), (half + 0.2, 0.3), (half + 0.3, 1.5), (-half - 0.3, 1.5)]), colours["trim"])
    elif style == "beanie":
        disc(0, -1.22, 0.2, 0.2, colours["cloth"])


def draw_front(fill: Fill, disc: Disc, style: str, outline: Points, turn: float, colours: Mapping[str, Colour]) -> None:
    """Draw what is on the head; `turn` moves the hairline with the face."""
    half = float(outline[:, 0].max())
    colour = colours["hair"]
    across = np.linspace(-1, 1, 17)
    if style == "bald":
        return
    if style == "scarf":
        _cap(fill, outline, -0.62 + 0.25 * across**2, 0.12, colours["trim"], turn)
        return
    if style == "beanie":
        _cap(fill, outline, np.full(17, -0.42), 0.10, colours["cloth"], 0)
        band = np.array([(-half - 0.05, -0.62), (half + 0.05, -0.62), (half + 0.06, -0.40), (-half - 0.06, -0.40)])
        fill(band, colours["trim"])
        return
    lines = {
        "swept": -0.56 + 0.20 * across + 0.06 * np.abs(across),
        "parted": -0.74 + 0.34 * np.abs(across) ** 1.5,
        "long": -0.72 + 0.42 * np.abs(across) ** 1.7,
        "bob": np.full(17, -0.46) + 0.04 * across**2,
        "curly": -0.60 + 0.05 * np.cos(3 * np.pi * across),
        "afro": -0.62 + 0.12 * across**2,
        "pigtails": -0.60 + 0.08 * np.abs(across),
    }
    _cap(fill, outline, lines.get(style, -0.64 + 0.14 * across**2), 0.07, colour, turn)
    if style == "curly":
        for angle in np.linspace(-0.15, np.pi + 0.15, 9):
            disc(float(half * 1.02 * np.cos(angle)), float(-0.12 - 0.84 * np.sin(angle)), 0.23, 0.23, colour)
    if style == "short":
        for x in (-0.5, -0.2, 0.1, 0.4):
            fill(np.array([(x - 0.18, -0.9), (x + 0.24, -0.88), (x + 0.18, -1.16)]), colour)
    if style in ("swept", "bun", "parted", "bob", "long"):
        shine = np.linspace(np.pi * 1.2, np.pi * 1.45, 9)
        arc = np.stack([np.cos(shine) * half, np.sin(shine)], 1)
        fill(np.add(np.vstack([arc * 0.95, (arc * 0.86)[::-1]]), (0.5 * turn, 0)), colours["strand"])


def _cap(
    fill: Fill, outline: Points, hairline: npt.NDArray[np.float64], over: float, colour: Colour, turn: float
) -> None:
    """Fill from the head's top edge, `over` it, to a hairline: 17 heights from left to right."""
    # The upper half of the outline runs from the left ear over the top to the right ear.
    upper = outline[24:49]
    upper = np.vstack([upper, outline[:1]]) * (1 + over)
    ears = np.array([(-float(outline[:, 0].max()) * (1 + over), 0.02)])
    half = float(outline[:, 0].max())
    x = np.linspace(1, -1, 17) * half
    edge = np.clip(np.abs(x) / half, 0, 1)
    # Towards the ears the hairline falls steeply, and there it does not turn.
    drop = np.clip((edge - 0.86) / 0.14, 0, 1)
    y = hairline[::-1] * (1 - drop) + 0.02 * drop
    inner = np.stack([x * 0.97 + turn * (1 - edge), y], 1)
    fill(np.vstack([ears, upper, inner]), colour)
