"""A job that is killed continues with its next window, whichever way it was started."""

from __future__ import annotations

import pytest
from kill_windows import WAYS, reference, run_round


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_a_killed_job_continues_with_its_next_window(way: str) -> None:
    # After the third window; `nox -s resume` tries sixty points.
    found = run_round(way, 3, reference(way))

    assert found.killed
    assert found.taken_over
    assert not found.problems
