"""The measurement of cuts and moods: its figures on made-up videos, and its tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.errors import RequestError
from scripts.evaluate_tiny import timeline

ROOT = Path(__file__).parents[2]


def test_a_jump_is_the_change_at_a_cut_against_those_around_it() -> None:
    # Each frame is one level brighter; at the cut before frame 10 it is four.
    levels = np.arange(20) + 3 * (np.arange(20) >= 10)
    pictures = np.broadcast_to(levels[:, None, None, None], (20, 8, 8, 3)).astype(np.uint8)
    assert timeline._jump(pictures, [10]) == pytest.approx(4)
    assert timeline._jump(pictures, [5]) == pytest.approx(1, rel=0.5)


def test_the_error_near_cuts_is_none_for_the_voices_own_curve_and_only_near_cuts() -> None:
    voice = np.random.default_rng(0).random(100).astype(np.float32)
    mouth = voice.copy()
    assert timeline._error(3 * mouth + 1, voice, [50]) == pytest.approx(0, abs=1e-5)
    mouth[48:52] = 5
    assert timeline._error(mouth, voice, [50]) > 1.5 * timeline._error(mouth, voice, [20])


def test_the_page_shows_what_was_measured() -> None:
    report: dict[str, Any] = json.loads((ROOT / timeline.MEASURED).read_text("utf-8"))
    assert timeline.table(report) in (ROOT / timeline.PAGE).read_text("utf-8")
    # Moods change where they should, and not before; cuts move into pauses.
    assert report["mood"]["differing values before"] == 0
    assert all(value > 0.5 for key, value in report["mood"].items() if key.startswith("window"))
    ways = report["windows"]
    assert ways["pauses"]["cuts in pauses"] > ways["fixed"]["cuts in pauses"]
    assert ways["pauses"]["sync"] > ways["fixed"]["sync"] - 0.02


@pytest.mark.parametrize("asked", [{"clips": 0}, {"seconds": 2.0}])
def test_nothing_to_measure_is_refused(asked: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="two windows"):
        timeline.run(**asked)
