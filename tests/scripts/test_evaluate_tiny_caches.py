"""The bench of step caches: curves of magnitudes, and its table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine.errors import RequestError
from scripts.evaluate_tiny import caches

ROOT = Path(__file__).parents[2]


def test_curves_of_schedules_with_other_times_have_one_mean() -> None:
    # Both fall from 1 to 1/4 on a straight line of the logarithm, seen in two and in four steps.
    coarse = [(1000.0, 1.0), (500.0, 0.5), (0.0, 0.5)]
    fine = [(1000.0, 1.0), *((time, 0.5**0.5) for time in (750.0, 500.0, 250.0, 0.0))]

    assert caches.mean_curve([coarse, fine], 5) == pytest.approx([1, 0.5**0.5, 0.5, 0.5**1.5, 0.25])


def test_a_curve_is_constant_beyond_its_ends() -> None:
    assert caches.mean_curve([[(900.0, 1.0), (500.0, 0.5)]], 3) == pytest.approx([1, 0.5, 0.5])


def test_the_table_is_written_between_its_markers(tmp_path: Path) -> None:
    row = {"overrides": ["cache=magcache"], "forwards": 30.0, "fewer": 4.0, "one": 0.945, "two": 0.949}
    report: dict[str, Any] = {"rows": {"magcache": row | {"lost": {"one": 0.011, "two": -0.012}, "sharpness": 0.8}}}
    for path, text in (
        (caches.MEASURED, json.dumps(report)),
        (caches.PAGE, "before\n<!-- caches -->\nold\n<!-- /caches -->\nafter\n"),
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    caches.write_table(tmp_path)

    page = (tmp_path / caches.PAGE).read_text()
    assert page.startswith("before\n<!-- caches -->\n| setting |")
    assert page.endswith("\n<!-- /caches -->\nafter\n")
    assert "| magcache | `cache=magcache` | 30 | 4.00 x | 0.945 (-0.011) | 0.949 (+0.012) | 0.800 |" in page
    assert "old" not in page


def test_the_page_shows_what_was_measured() -> None:
    report = json.loads((ROOT / caches.MEASURED).read_text())

    assert caches.table(report) in (ROOT / caches.PAGE).read_text()
    # Three times fewer forwards than 40 steps of three passes, with sync within 0.02.
    assert report["rows"]["none"]["forwards"] == 40 * 3
    assert report["enough"]
    assert all(report["rows"][name]["fewer"] >= 3 for name in report["enough"])


@pytest.mark.parametrize("asked", [{"clips": 0}, {"rows": " ; "}])
def test_nothing_to_compare_is_refused(asked: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="rows"):
        caches.run(**asked)


def test_too_few_points_are_refused() -> None:
    with pytest.raises(RequestError, match="points"):
        caches.magnitudes(points=1)
