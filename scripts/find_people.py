"""Count whom the finders find: `python -m scripts.find_people [--pictures FOLDER] [--sheet OUT.png]`. Prints JSON.

Drawn scenes, none of whose faces the detector was trained on, with one and with two people; the photographs of
scikit-image, with and without a person; and the pictures in a folder, which are only listed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import skimage.data
from PIL import Image, ImageDraw

from engine.data import Found
from engine.people import find_people
from engine.people.faces import installed
from scripts.train_people.__main__ import scene_of

#: Name -> the number of people whose face is seen. The last ten took no part in the training of the drawn finder.
PHOTOGRAPHS = {
    "astronaut": 1,
    "camera": 1,
    "coffee": 0,
    "chelsea": 0,
    "rocket": 0,
    "coins": 0,
    "retina": 0,
    "hubble_deep_field": 0,
    "moon": 0,
    "immunohistochemistry": 0,
    "horse": 0,
    "logo": 0,
    "clock": 0,
    "colorwheel": 0,
    "cell": 0,
    "checkerboard": 0,
}


def main() -> None:
    """Find, count and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=60)
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--sheet", type=Path)
    arguments = parser.parse_args()
    shown: list[Image.Image] = []
    right, wrong = 0, []
    for seed in range(950_000, 950_000 + arguments.scenes):
        scene, picture = scene_of(seed, "held_out")
        found = find_people(picture, "drawn")
        heads = [(one.x / scene.size[0], one.y / scene.size[1]) for one in scene.people]
        if len(found) == len(heads) and all(_in(one, head) for one, head in zip(found, heads, strict=True)):
            right += 1
        else:
            wrong.append({"seed": seed, "people": len(heads), "found": [one.box for one in found]})
        shown.append(_framed(picture, found))
    report: dict[str, Any] = {"drawn": {"all_found_and_no_one_else": right, "of": arguments.scenes, "wrong": wrong}}
    for finder in ("drawn", *(("faces",) if installed() else ())):
        misses = {}
        for name, people in PHOTOGRAPHS.items():
            picture = photograph(name)
            found = find_people(picture, finder)
            if len(found) != (people if finder == "faces" else 0):
                misses[name] = len(found)
            if finder == "faces":
                shown.append(_framed(picture, found))
        report[f"photographs by {finder}"] = {"of": len(PHOTOGRAPHS), "wrong": misses}
    for path in sorted(arguments.pictures.glob("*.jpg")) if arguments.pictures else ():
        found = find_people(path)
        report[path.name] = [{"box": one.box, "score": one.score, "finder": one.finder} for one in found]
        shown.append(_framed(np.asarray(Image.open(path).convert("RGB")), found))
    print(json.dumps(report, indent=1))
    if arguments.sheet:
        sheet = Image.new("RGB", (10 * 164, -(-len(shown) // 10) * 164))
        for index, image in enumerate(shown):
            sheet.paste(image, (index % 10 * 164, index // 10 * 164))
        sheet.save(arguments.sheet)


def photograph(name: str) -> npt.NDArray[np.uint8]:
    """Return a picture of scikit-image's as uint8 RGB."""
    pixels = np.asarray(getattr(skimage.data, name)())
    return np.asarray(Image.fromarray(pixels).convert("RGB"))


def _in(found: Found, head: tuple[float, float]) -> bool:
    x0, y0, x1, y1 = found.face
    return x0 < head[0] < x1 and y0 < head[1] < y1


def _framed(picture: npt.NDArray[np.uint8], found: tuple[Found, ...]) -> Image.Image:
    image = Image.fromarray(picture)
    image.thumbnail((160, 160))
    pen = ImageDraw.Draw(image)
    for one in found:
        for box, colour in ((one.box, "red"), (one.face, "yellow")):
            pen.rectangle([edge * side for edge, side in zip(box, image.size * 2, strict=True)], outline=colour)
    return image


if __name__ == "__main__":
    main()
