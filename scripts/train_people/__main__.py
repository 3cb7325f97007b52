"""Train the detector of drawn people: `python -m scripts.train_people`. Minutes on one core.

Writes engine/people/drawn.npz and prints JSON: what it finds on held-out scenes, none of whose faces it has seen.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import skimage.data
from PIL import Image
from scipy.optimize import minimize

from engine.people import drawn
from scripts.train_tiny.people import Mouth
from scripts.train_tiny.scene import DrawnScene, draw, random_scene

SIZES = ((160, 96), (96, 160), (128, 128), (320, 192), (192, 320), (256, 256), (480, 288))
PHOTOGRAPHS = (
    "chelsea",
    "coffee",
    "rocket",
    "coins",
    "page",
    "text",
    "brick",
    "grass",
    "gravel",
    "camera",
    "astronaut",
)


def scene_of(seed: int, split: Any = "train", people: int | None = None) -> tuple[DrawnScene, npt.NDArray[np.uint8]]:
    """Return a scene and its picture."""
    rng = np.random.default_rng(seed)
    scene = random_scene(seed, SIZES[seed % len(SIZES)], people, split)
    mouths = [Mouth(float(rng.uniform()), float(rng.uniform())) for _ in scene.people]
    return scene, draw(scene, float(rng.uniform(0, 5)), mouths)


def photographs() -> list[npt.NDArray[np.uint8]]:
    """Return pictures without a drawn person."""
    found = []
    for name in PHOTOGRAPHS:
        image = Image.fromarray(np.asarray(getattr(skimage.data, name)())).convert("RGB")
        image.thumbnail((320, 320))
        found.append(np.asarray(image))
    return found


def features(picture: npt.NDArray[np.uint8], x: float, y: float, radius: float) -> npt.NDArray[np.float32]:
    """Return the features of one window about (x, y)."""
    scale, half = drawn.RADIUS / radius, drawn.SIDE * drawn.CELL / 2
    margin = half / scale
    room = int(margin * 2) + 2
    wide = Image.fromarray(np.pad(picture, ((room, room), (room, room), (0, 0)), mode="edge")).convert("L")
    # Some surroundings, as the sliding windows have.
    more = 2 * drawn.CELL
    reach = (half + more) / scale
    box = (x + room - reach, y + room - reach, x + room + reach, y + room + reach)
    side = int(2 * (half + more))
    grey = np.asarray(wide.resize((side, side), Image.Resampling.BILINEAR, box=box)) / np.float32(255)
    cells = drawn.cells_of(grey)[2:-2, 2:-2]
    return cells.reshape(-1)


def fit(good: npt.NDArray[np.float32], bad: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], float]:
    """Return weights and bias of a regularised logistic regression, both kinds of the same total weight."""
    rows = np.concatenate([good, bad]).astype(np.float32)
    signs = np.concatenate([np.ones(len(good)), -np.ones(len(bad))]).astype(np.float32)
    share = np.where(signs > 0, 0.5 / len(good), 0.5 / len(bad)).astype(np.float32)

    def loss(values: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        weights = values[:-1].astype(np.float32)
        margin = signs * (rows @ weights + np.float32(values[-1]))
        slope = -signs * share / (1 + np.exp(np.minimum(margin, 50)))
        total = float((share * np.logaddexp(0, -margin)).sum()) + 1e-5 * float(weights @ weights)
        return total, np.append(slope @ rows + 2e-5 * weights, slope.sum()).astype(np.float64)

    result = minimize(loss, np.zeros(rows.shape[1] + 1), jac=True, method="L-BFGS-B", options={"maxiter": 150})
    return result.x[:-1].astype(np.float32), float(result.x[-1])


def strange(scene: DrawnScene | None, head: drawn.Head) -> bool:
    """Return whether a window is far from every person's head."""
    _, x, y, radius = head
    return scene is None or all(
        np.hypot(x - one.x, y - one.y) > 0.6 * one.radius or not 0.6 < radius / one.radius < 1.7 for one in scene.people
    )


def main() -> None:
    """Train in rounds, each with the false alarms of the one before."""
    rng = np.random.default_rng(0)
    good, bad = [], []
    for seed in range(500):
        scene, picture = scene_of(seed)
        for one in scene.people:
            for _ in range(3):
                move = rng.uniform(-0.1, 0.1, 2) * one.radius
                good.append(
                    features(picture, one.x + move[0], one.y + move[1], one.radius * float(rng.uniform(0.93, 1.07)))
                )
        for _ in range(8):
            x, y = rng.uniform(0, picture.shape[1]), rng.uniform(0, picture.shape[0])
            radius = float(rng.uniform(drawn.SMALLEST, drawn.LARGEST) * min(picture.shape[:2]))
            if strange(scene, (0, x, y, radius)):
                bad.append(features(picture, x, y, radius))
    for round_ in range(3):
        weights, bias = fit(np.stack(good), np.stack(bad))
        np.savez_compressed(drawn.WEIGHTS, weights=weights.astype(np.float16), bias=np.float32(bias))
        drawn._detector.cache_clear()
        pictures = [scene_of(10_000 * (round_ + 1) + seed) for seed in range(120)]
        alarms: list[tuple[DrawnScene | None, npt.NDArray[np.uint8]]] = [*pictures]
        alarms += [(None, picture) for picture in photographs()]
        for where, picture in alarms:
            found = [(head[0], row) for head, row in drawn.look(picture) if strange(where, head)]
            bad += [row for _, row in sorted(found, key=lambda one: -one[0])[:30]]
        print(round_, len(bad), flush=True)
    weights, bias = fit(np.stack(good), np.stack(bad))
    np.savez_compressed(drawn.WEIGHTS, weights=weights.astype(np.float16), bias=np.float32(bias))
    drawn._detector.cache_clear()
    for threshold in (-0.5, 0, 0.5, 1, 1.5, 2, 3):
        right = counted = extra = 0
        for seed in range(900_000, 900_042):
            scene, picture = scene_of(seed, "held_out")
            heads = drawn.heads(picture, threshold)
            missed = any(all(strange(replace(scene, people=(one,)), head) for head in heads) for one in scene.people)
            right += len(heads) == len(scene.people) and not missed
            extra += sum(strange(scene, head) for head in heads)
            counted += 1
        others = [len(drawn.heads(picture, threshold)) for picture in photographs()]
        print(json.dumps({"threshold": threshold, "all_right": right, "of": counted, "extra": extra, "photos": others}))


if __name__ == "__main__":
    main()
