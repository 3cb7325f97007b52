"""The soak holds a worker to its bars, whatever the first jobs did."""

from __future__ import annotations

from typing import Any

import pytest

from engine.bench import soak
from engine.errors import RequestError


def rows(growth: float, jobs: int = 60) -> list[dict[str, Any]]:
    # Each of the first ones adds much: caches fill.
    memory = [600 + 10.0 * min(number, soak.WARM) + growth * number for number in range(jobs)]
    return [{"seconds": 2, "sha256": "ab", "rss_mib": value, "threads": 5, "descriptors": 18} for value in memory]


@pytest.mark.parametrize(("growth", "holds"), [(0.0, True), (0.09, True), (0.11, False), (-1.0, True)])
def test_memory_may_grow_by_a_tenth_of_a_mib_a_job_once_the_worker_is_warm(growth: float, holds: bool) -> None:
    report = soak._report(rows(growth), [], 0)
    assert report["slope_mib_per_job"] == pytest.approx(growth, abs=1e-3)
    assert report["holds"] is holds


@pytest.mark.parametrize(("left", "status"), [(["multitalk-ab/video.mp4"], 0), ([], 1)])
def test_a_file_that_is_left_or_a_worker_that_fails_does_not_hold(left: list[str], status: int) -> None:
    assert soak._report(rows(0.0), left, status)["holds"] is False


def test_too_few_jobs_are_refused() -> None:
    with pytest.raises(RequestError, match="at least 22"):
        soak.run(jobs=soak.WARM)
