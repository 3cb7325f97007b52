"""Draw a contact sheet of random scenes, to look at.

python -m scripts.train_tiny.sheet SHEET.png [--size 160x96] [--people N] [--seed N]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from scripts.train_tiny.people import Mouth
from scripts.train_tiny.scene import draw, random_scene

#: The mouths of a row, one column each: (opening, width).
MOUTHS = ((0.0, 0.4), (0.3, 0.7), (0.6, 0.2), (1.0, 0.6))


def sheet(size: tuple[int, int], people: int | None, first: int, columns: int, rows: int, zoom: int) -> Image.Image:
    """Return a picture of rows x columns scenes, each column's mouths as in MOUTHS (in turn)."""
    cells = []
    for number in range(rows * columns):
        scene = random_scene(first + number, size, people)
        mouths = [Mouth(*MOUTHS[(number + person) % len(MOUTHS)]) for person in range(2)]
        cells.append(np.pad(draw(scene, 1.0 + 0.3 * number, mouths), ((0, 2), (0, 2), (0, 0))))
    table = np.concatenate([np.concatenate(cells[row * columns : (row + 1) * columns], 1) for row in range(rows)])
    picture = Image.fromarray(table)
    return picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.LANCZOS)


def main() -> None:
    """Write the sheet that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path)
    parser.add_argument("--size", default="160x96")
    parser.add_argument("--people", type=int, choices=(1, 2))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--columns", type=int, default=4)
    parser.add_argument("--rows", type=int, default=5)
    parser.add_argument("--zoom", type=int, default=3)
    arguments = parser.parse_args()
    width, height = (int(side) for side in arguments.size.split("x"))
    sheet((width, height), arguments.people, arguments.seed, arguments.columns, arguments.rows, arguments.zoom).save(
        arguments.path
    )


if __name__ == "__main__":
    main()
