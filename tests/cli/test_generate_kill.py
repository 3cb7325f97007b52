"""A generation that is killed leaves no file that passes for a video, and the next one makes it."""

from __future__ import annotations

from pathlib import Path

import pytest
from kill_generate import run_round


@pytest.mark.slow
def test_a_killed_generation_leaves_no_half_video_and_the_next_makes_it(tmp_path: Path) -> None:
    # While it is encoded; `nox -s kills` tries thirty points.
    found = run_round(2, tmp_path)

    assert found.point == "part"
    assert not found.problems
