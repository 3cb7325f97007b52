"""The measurement of dubbing: its figures on made-up videos, and what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from source_videos import scene_frames

from engine.errors import RequestError
from engine.evaluation.mouths import face_places
from scripts.evaluate_tiny import dubbing

ROOT = Path(__file__).parents[2]


def test_heads_that_move_alike_are_together_and_others_are_not() -> None:
    frames = scene_frames(31, 12)
    # The whole picture moves by whole pixels.
    steps = np.array([0, 1, 2, 1, 0, -1, -2, -1, 0, 1, 2, 1])
    moved = np.stack([np.roll(frames[0], step, axis=1) for step in steps])
    box = (65, 55, 95, 72)
    places = face_places(moved, box)
    assert dubbing._together(places, np.stack([np.zeros(12), steps], 1)) > 0.98
    assert dubbing._together(places, np.stack([np.zeros(12), -steps], 1)) < -0.98
    with pytest.raises(ValueError, match="no face above"):
        face_places(moved, (65, 2, 95, 20))


def test_psnr_counts_only_what_is_outside_the_region() -> None:
    source = np.full((2, 16, 16, 3), 100, np.uint8)
    pictures = source.copy()
    pictures[:, 4:8, 4:8] = 0
    assert dubbing._psnr(pictures, source, np.array([4, 4, 8, 8])) > 90
    pictures[:, :2] += 5
    assert dubbing._psnr(pictures, source, np.array([4, 4, 8, 8])) == pytest.approx(42.8, abs=0.5)


def test_the_page_shows_what_was_measured() -> None:
    report: dict[str, Any] = json.loads((ROOT / dubbing.MEASURED).read_text("utf-8"))
    assert dubbing.table(report) in (ROOT / dubbing.PAGE).read_text("utf-8")
    ways = report["ways"]
    for way in ("sparse", "keep head", "keep lower face"):
        assert ways[way]["sync"] > ways["picture"]["sync"] - 0.03
    for way, follows in (("keep head", 0.5), ("keep lower face", 0.9)):
        assert ways[way]["psnr outside"] > 40
        assert ways[way]["head follows"] > follows
    for mode in report["cuts"].values():
        assert mode["cuts found"] == 1
        assert mode["frames beside the cut"] == 0
        assert mode["change at the cut"] == pytest.approx(1, abs=0.1)
    with Image.open(ROOT / dubbing.SHEET) as sheet:
        assert sheet.height == 5 * 98


def test_nothing_to_measure_is_refused() -> None:
    with pytest.raises(RequestError, match="2 or more"):
        dubbing.run(clips=1)
