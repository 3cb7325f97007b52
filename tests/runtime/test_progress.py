"""The meter says where a generation stands, and stops it when the caller withdraws."""

from __future__ import annotations

import mmap
import threading
from collections.abc import Mapping
from itertools import pairwise

import pytest
import torch

from engine.data import Peak, Progress
from engine.errors import Cancelled
from engine.runtime import memory
from engine.runtime.bar import TimedProgress
from engine.runtime.progress import Meter

#: Bytes that the kernel counts by; a touched one is in memory.
PAGE = mmap.PAGESIZE


class Clock:
    """Time that passes when it is told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def generate(seen: list[Progress], windows: int, steps: int, took: Mapping[str, float]) -> None:
    """Have a meter tell of a generation whose stages, and steps, take so many seconds."""
    clock = Clock()
    meter = Meter(seen.append, None, clock=clock)
    with meter.stage("load"):
        clock.now += 50
    meter.expect(windows, steps)
    for window in range(1, windows + 1):
        for stage in ("encode", "denoise", "decode", "write"):
            with meter.stage(stage, window=window):
                for step in range(steps if stage == "denoise" else 0):
                    clock.now += took["step"]
                    meter.step(step + 1)
                clock.now += took.get(stage, 0.0)
        meter.window_done()
    with meter.stage("keep"):
        pass


def test_a_step_of_two_evaluations_counts_twice() -> None:
    clock, seen = Clock(), list[Progress]()
    meter = Meter(seen.append, None, clock=clock)
    meter.expect(1, 3, (2, 2, 1))
    with meter.stage("denoise", window=1):
        for step, seconds in enumerate((4.0, 4.0, 2.0), start=1):
            clock.now += seconds
            last = meter.step(step)
            left = (10.0, 6.0, 2.0, 0.0)[step]
            # Encoding, decoding and writing were not measured: 3.2 encodings, each as long as an evaluation.
            assert last.remaining == pytest.approx(left + 3.2 * 2.0)


#: Seconds of a window: of the embedded model with turbo, and of a large network whose autoencoder hardly counts.
TOOK = {
    "decoding counts": ({"encode": 4.0, "step": 1.0, "decode": 9.0, "write": 1.0}, 5),
    "steps count": ({"encode": 4.0, "step": 40.0, "decode": 7.0, "write": 1.0}, 10),
}


@pytest.mark.parametrize("kind", TOOK)
@pytest.mark.parametrize("windows", [1, 3])
def test_fraction_and_remaining_are_the_real_shares_of_all_stages(windows: int, kind: str) -> None:
    took, steps = TOOK[kind]
    seen: list[Progress] = []
    generate(seen, windows, steps, took)
    window = took["encode"] + steps * took["step"] + took["decode"] + took["write"]

    for number in range(windows):
        at = {p.stage: p for p in reversed(seen) if (p.window, p.step) == (number + 1, 0)}
        decoding = (number * window + took["encode"] + steps * took["step"]) / (windows * window)
        # Within what the guess of the first decoding was wrong by.
        slack = 0.05 if number == 0 else 0.001
        assert at["decode"].fraction == pytest.approx(decoding, abs=slack)
        left = (1 - decoding) * windows * window
        assert at["decode"].remaining == pytest.approx(left, rel=0.2 if number == 0 else 0.01)
        written = decoding + took["decode"] / (windows * window)
        assert at["write"].fraction == pytest.approx(written, abs=slack)
    assert [p.fraction for p in seen] == sorted(p.fraction for p in seen)
    assert (seen[-1].fraction, seen[-1].remaining) == (1.0, 0)
    assert seen[0].remaining is None


def test_a_window_that_is_made_again_never_turns_the_progress_back() -> None:
    clock, seen = Clock(), list[Progress]()
    meter = Meter(seen.append, None, clock=clock)
    meter.expect(2, 2)
    for window, attempts in ((1, 3), (2, 1)):
        with meter.stage("encode", window=window):
            clock.now += 1
        for attempt in range(attempts):
            if attempt:
                meter.again()
            with meter.stage("denoise", window=window):
                for step in (1, 2):
                    clock.now += 10
                    meter.step(step)
            with meter.stage("decode", window=window):
                clock.now += 2
        with meter.stage("write", window=window):
            clock.now += 1
        meter.window_done()
        if window == 1:
            # What is left is one whole window, however often the first one was made.
            assert seen[-1].remaining == pytest.approx(1 + 20 + 2 + 1)
            # It was a little more before the cost of decoding was known.
            assert seen[-1].fraction == pytest.approx(1 - 24 / (68 + 24), abs=0.01)
    fractions = [progress.fraction for progress in seen]
    assert fractions == sorted(fractions)
    assert fractions[-1] == pytest.approx(1)


def test_steps_are_counted_from_one_in_each_window() -> None:
    seen: list[Progress] = []
    generate(seen, 2, 3, TOOK["steps count"][0])
    assert [(p.window, p.step) for p in seen if p.step] == [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3)]


def test_each_sign_says_how_far_the_next_one_is() -> None:
    signs: list[Progress] = []
    generate(signs, 2, 3, TOOK["steps count"][0])
    seen = [sign for sign in signs if isinstance(sign, TimedProgress)]
    later = [(one, other) for one, other in pairwise(seen) if one.window == 2 and one.expected]
    assert len(later) == 6
    for one, other in later:
        assert one.fraction + one.ahead == pytest.approx(other.fraction, abs=0.001)
        assert one.remaining is not None
        assert other.remaining == pytest.approx(one.remaining - (one.expected or 0), abs=0.1)


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

    monkeypatch.setattr(memory, "forget_peak", denied)
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


def test_windows_of_an_earlier_attempt_count_as_done_and_not_as_measured() -> None:
    clock, seen = Clock(), list[Progress]()
    meter = Meter(seen.append, None, clock=clock)
    meter.expect(4, 2)
    meter.take_over(3)
    assert seen[-1].fraction == pytest.approx(0.75)
    assert seen[-1].remaining is None

    with meter.stage("denoise", window=4):
        clock.now += 10
        # Encoding, decoding and writing were not measured: 3.2 encodings, each as long as a step.
        assert meter.step(1).remaining == pytest.approx(10 + 3.2 * 10)
        clock.now += 10
        meter.step(2)
    meter.window_done()
    assert seen[-1].fraction == 1
