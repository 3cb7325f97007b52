"""Windows cover exactly what was asked for."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import Cancelled
from engine.stages.windows import count_windows, generated_frames, nearest_frame, output_frames, plan_windows

RATES = st.sampled_from([8.0, 12.5, 23.976, 24.0, 25.0, 30.0, 50.0])


@given(frames=st.integers(1, 1200), window=st.sampled_from([29, 81, 201]), motion=st.sampled_from([5, 9, 25]))
def test_windows_keep_exactly_the_frames_asked_for(frames: int, window: int, motion: int) -> None:
    windows = plan_windows(frames, window=window, motion=motion)
    assert sum(w.keep for w in windows) == frames
    assert all(w.frames % 4 == 1 and w.frames <= window for w in windows)
    assert windows[0].motion == 0
    done = 0
    for w in windows:
        assert w.start + w.motion == done
        assert 0 < w.keep <= w.frames - w.motion
        done += w.keep


@given(frames=st.integers(1, 5000), window=st.sampled_from([5, 9, 29, 81, 201]), motion=st.sampled_from([1, 5, 9, 25]))
def test_windows_are_counted_without_making_them(frames: int, window: int, motion: int) -> None:
    if motion < window:
        made = plan_windows(frames, window=window, motion=motion)
        assert count_windows(frames, window=window, motion=motion) == len(made)
    assert count_windows(10**300, window=81, motion=25) > 10**298


def test_planning_can_be_cancelled() -> None:
    asked = threading.Event()
    asked.set()
    with pytest.raises(Cancelled):
        plan_windows(10**15, window=81, motion=25, cancel=asked)


def test_a_window_before_another_is_full() -> None:
    windows = plan_windows(300, window=81, motion=25)
    assert [w.frames for w in windows[:-1]] == [81, 81, 81, 81]
    assert all(w.motion + w.keep == w.frames for w in windows[:-1])


def test_last_window_is_as_short_as_its_frames_allow() -> None:
    assert plan_windows(82, window=81, motion=25)[1].frames == 29
    assert plan_windows(10, window=81, motion=25)[0].frames == 13


@given(frames=st.integers(1, 300), fps=RATES, native=st.sampled_from([8.0, 25.0]))
def test_picks_of_all_windows_are_the_whole_video_in_order(frames: int, fps: float, native: float) -> None:
    generated = generated_frames(frames, fps, native)
    found = [
        window.start + window.motion + index
        for window in plan_windows(generated, window=29, motion=5)
        for index in output_frames(window, frames, fps, native)
    ]
    assert found == [nearest_frame(i, fps, native) for i in range(frames)]
    assert max(found) < generated


@pytest.mark.parametrize("frames", [1, 4, 5, 81, 82, 100, 201])
def test_equal_rates_pick_each_frame_once(frames: int) -> None:
    for window in plan_windows(frames, window=81, motion=25):
        assert output_frames(window, frames, 25.0, 25.0) == tuple(range(window.keep))


@given(frames=st.integers(1, 400), motion=st.sampled_from([5, 9]))
def test_whole_windows_are_never_shorter_and_keep_exactly_the_frames_asked_for(frames: int, motion: int) -> None:
    windows = plan_windows(frames, window=33, motion=motion, whole=True)
    assert {window.frames for window in windows} == {33}
    assert sum(window.keep for window in windows) == frames
    assert all(1 <= window.keep <= 33 - window.motion for window in windows)
    assert len(windows) == count_windows(frames, window=33, motion=motion)
