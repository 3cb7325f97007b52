"""Decision records have a status and a date, and each number means one record or is said to mean none."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "docs" / "decisions"
RECORDS = {path.name[:3]: path for path in sorted(FOLDER.glob("[0-9]*.md"))}


def test_numbers_have_no_gap_but_those_that_the_readme_names() -> None:
    assert len(RECORDS) == len(list(FOLDER.glob("*.md"))) - 1
    missing = {f"{number:03}" for number in range(1, int(max(RECORDS)) + 1)} - set(RECORDS)
    assert set(re.findall(r"\b0\d\d\b", (FOLDER / "README.md").read_text("utf-8"))) == missing


@pytest.mark.parametrize("number", RECORDS)
def test_a_record_says_its_status_and_date_and_fits_a_screen(number: str) -> None:
    lines = RECORDS[number].read_text("utf-8").splitlines()
    assert lines[0].startswith(f"# {number}: ")
    day = r"20\d\d-\d\d-\d\d"
    status = re.fullmatch(
        rf"\*\*Status\.\*\* (?:Accepted|Superseded by (\d{{3}})), {day}(?:; changed {day})?\.", lines[2]
    )
    assert status is not None, lines[2]
    assert status[1] is None or status[1] in RECORDS
    assert len(lines) <= 30
