"""The meter says where a generation stands, and stops it when the caller withdraws."""

from __future__ import annotations

import mmap
import threading

import pytest
import torch

from engine import peaks
from engine.data import Peak, Progress
from engine.errors import Cancelled
from engine.progress import Meter

#: Bytes that the kernel counts by; a touched one is in memory.
PAGE = mmap.PAGESIZE


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


def test_a_stage_is_told_by_how_much_it_raised_the_peak() -> None:
    meter = Meter(None, None)
    for stage, mebibytes in (("denoise", 48), ("decode", 16), ("denoise", 80)):
        # Straight from the kernel and back to it: an allocator keeps what was freed.
        with meter.stage(stage), mmap.mmap(-1, mebibytes * 2**20) as kept:
            kept[::PAGE] = b"x" * (len(kept) // PAGE)

    host = meter.peaks.found["host"]

    # The kernel counts in batches of pages.
    assert host.raised["denoise"] == pytest.approx(80 * 2**20, abs=8 * 2**20)
    assert host.raised.get("decode", 0) < 8 * 2**20
    assert host.peak == host.start + sum(host.raised.values())


def test_torchs_own_peak_is_told_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = iter([500, 900, 700, 1000])
    reset: list[bool] = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: reset.append(True))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 400)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: next(counted))

    meter = Meter(None, None, "cuda")
    for stage in ("encode", "denoise", "decode", "denoise"):
        with meter.stage(stage):
            pass

    assert reset == [True]
    assert meter.peaks.found["device"] == Peak(400, 1000, {"encode": 100, "denoise": 500})


def test_where_the_kernel_tells_no_peaks_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def denied() -> int:
        raise PermissionError

    monkeypatch.setattr(peaks, "forget_peak", denied)
    meter = Meter(None, None)
    with meter.stage("read"):
        pass
    assert meter.peaks.found == {}


def test_withdrawn_request_stops_at_the_next_stage() -> None:
    cancel = threading.Event()
    meter = Meter(None, cancel)
    with meter.stage("read"):
        cancel.set()
    with pytest.raises(Cancelled, match="encode"), meter.stage("encode"):
        pytest.fail("the stage ran")
