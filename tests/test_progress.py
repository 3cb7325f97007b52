"""The meter says where a generation stands, and stops it when the caller withdraws."""

from __future__ import annotations

import threading

import pytest

from engine.data import Progress
from engine.errors import Cancelled
from engine.progress import Meter


def test_fraction_and_remaining_follow_the_steps() -> None:
    seen: list[Progress] = []
    meter = Meter(seen.append, None)
    meter.expect(windows=2, steps=3)
    for window in (1, 2):
        with meter.stage("denoise", window=window):
            for step in range(3):
                meter.step(step + 1)
        meter.window_done()
    steps = [p for p in seen if p.step]
    assert [p.fraction for p in steps] == pytest.approx([1 / 8, 2 / 8, 3 / 8, 5 / 8, 6 / 8, 7 / 8])
    assert [(p.window, p.step) for p in steps] == [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3)]
    assert (seen[-1].fraction, seen[-1].remaining) == (1.0, 0)
    assert seen[0].remaining is None


def test_stages_of_all_windows_are_timed_together() -> None:
    meter = Meter(None, None)
    for window in (1, 2):
        with meter.stage("encode", window=window):
            pass
    assert set(meter.timings) == {"encode"}
    assert meter.timings["encode"] >= 0


def test_withdrawn_request_stops_at_the_next_stage() -> None:
    cancel = threading.Event()
    meter = Meter(None, cancel)
    with meter.stage("read"):
        cancel.set()
    with pytest.raises(Cancelled, match="encode"), meter.stage("encode"):
        pytest.fail("the stage ran")
