"""Colour statistics follow the reference's Lab transfer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load_file

from engine.media.color import color_statistics, match_color

GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "color_match.safetensors")


def frames(name: str) -> npt.NDArray[np.float32]:
    return np.ascontiguousarray(GOLDEN[name][0].transpose(1, 2, 3, 0))


@pytest.mark.parametrize(
    ("source", "strength", "wanted"),
    [("source", 1.0, "out_strength_1"), ("source", 0.5, "out_strength_05"), ("source_flat", 1.0, "out_flat_1")],
)
def test_colors_are_those_of_the_reference(source: str, strength: float, wanted: str) -> None:
    matched = match_color(frames(source), color_statistics(frames("reference")[0]), strength)

    assert matched.dtype == np.float32
    # The same library does the conversion; only the order of the sums differs.
    assert np.abs(matched - frames(wanted)).max() < 1e-4


def test_strength_nought_leaves_frames_as_they_are() -> None:
    given = frames("source")

    assert match_color(given, color_statistics(frames("reference")[0]), 0.0) is given


def test_frames_are_matched_each_by_itself() -> None:
    reference = color_statistics(frames("reference")[0])
    given = frames("source")

    assert np.array_equal(match_color(given, reference)[3:], match_color(given[3:], reference))


def test_memory_does_not_grow_with_the_number_of_frames() -> None:
    import tracemalloc

    def overhead(count: int) -> int:
        given = np.zeros((count, 64, 64, 3), np.float32)
        tracemalloc.start()
        matched = match_color(given, reference)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak - matched.nbytes

    reference = color_statistics(frames("reference")[0])
    overhead(1)
    assert overhead(40) < overhead(4) + 64 * 64 * 3 * 4
