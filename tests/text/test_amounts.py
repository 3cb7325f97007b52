"""Sizes are spelled in one way."""

from __future__ import annotations

import pytest

from engine.text.amounts import amount, gigabytes


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (1_500_000, "1.5 MB"),
        (999_940_000, "999.9 MB"),
        (82_300_000_000, "82.3 GB"),
        (5e12, "5000.0 GB"),
    ],
)
def test_bytes_have_the_unit_that_suits_them(size: float, text: str) -> None:
    assert amount(size) == text


def test_gigabytes_stay_gigabytes() -> None:
    assert (gigabytes(82_345_678_901), gigabytes(5_000_000), gigabytes(1_234_567_890, 2)) == (
        "82.3 GB",
        "0.0 GB",
        "1.23 GB",
    )
