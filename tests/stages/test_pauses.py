"""windows=pauses: windows meet where nobody speaks, at the cost that the plan states."""

from __future__ import annotations

import threading
import wave
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.data import Loudness
from engine.errors import Cancelled
from engine.media.quiet import FLOOR, RATE, loudness_at, read_loudness
from engine.media.tracks import inspect
from engine.stages.pauses import PAUSE, plan_in_pauses, tell_pauses
from engine.stages.windows import plan_windows


def speech(seconds: float, pauses: Sequence[tuple[float, float]]) -> Loudness:
    """Return the loudness of a voice that speaks except in `pauses`, (begin, end) in seconds."""
    levels = np.full(round(seconds * RATE), 0.0, np.float32)
    for begin, end in pauses:
        levels[round(begin * RATE) : round(end * RATE)] = FLOOR
    return Loudness(RATE, levels)


def test_a_cut_moves_into_a_pause_without_another_window() -> None:
    windows, seams = plan_in_pauses(125, speech(5, [(2.5, 3.0)]), fps=25, window=81, motion=9)
    # The last of the possible cuts with 0.1 s of silence on both sides.
    assert [(seam.seconds, seam.level, seam.pause) for seam in seams.seams] == [(2.76, FLOOR, True)]
    assert [(window.start, window.frames, window.motion, window.keep) for window in windows] == [
        (0, 69, 0, 69),
        (60, 65, 9, 56),
    ]
    assert (seams.windows, seams.fixed_windows) == (2, 2)
    assert (seams.computed, seams.fixed_computed) == (69 + 65, 81 + 53)
    assert seams.fixed_pauses == 0
    assert not tell_pauses(seams)


def test_a_window_is_added_only_if_that_avoids_a_cut_in_speech() -> None:
    # 153 frames are exactly two windows, whose cut is in speech.
    _, added = plan_in_pauses(153, speech(6.12, [(2.0, 2.5), (4.4, 4.9)]), fps=25, window=81, motion=9)
    assert (added.windows, added.fixed_windows) == (3, 2)
    assert all(seam.pause for seam in added.seams)
    windows, kept = plan_in_pauses(153, speech(6.12, [(0.5, 1.0)]), fps=25, window=81, motion=9)
    assert windows == plan_windows(153, window=81, motion=9)
    assert tell_pauses(kept) == [
        "windows=pauses: 1 of 1 cuts are in speech (3.24 s), because there is no pause within reach of a window"
    ]


def test_of_two_pauses_the_quieter_one_is_used() -> None:
    loudness = speech(5, [(2.2, 2.7), (2.9, 3.2)])
    loudness.levels[290:320] = -30
    _, seams = plan_in_pauses(125, loudness, fps=25, window=81, motion=9)
    assert 2.2 < seams.seams[0].seconds < 2.7


def test_a_short_gap_in_a_word_is_no_pause() -> None:
    _, seams = plan_in_pauses(125, speech(5, [(2.60, 2.72)]), fps=25, window=81, motion=9)
    assert not seams.seams[0].pause


@pytest.mark.parametrize("levels", [np.zeros(0, np.float32), np.full(4000, FLOOR, np.float32)])
def test_without_a_voice_windows_are_as_long_as_possible(levels: np.ndarray) -> None:
    windows, _ = plan_in_pauses(1000, Loudness(RATE, levels), fps=25, window=81, motion=9)
    assert windows == plan_windows(1000, window=81, motion=9)


@given(
    frames=st.integers(1, 700),
    shape=st.sampled_from([(81, 9), (81, 25), (29, 5), (21, 5), (9, 5), (5, 1)]),
    fps=st.sampled_from([8.0, 12.5, 25.0]),
    seed=st.integers(0, 99),
)
def test_windows_keep_the_models_rules(frames: int, shape: tuple[int, int], fps: float, seed: int) -> None:
    window, motion = shape
    rng = np.random.default_rng(seed)
    levels = np.repeat(rng.choice([0.0, -20.0, -30.0, FLOOR], frames), max(1, round(RATE / fps))).astype(np.float32)
    windows, seams = plan_in_pauses(frames, Loudness(RATE, levels), fps=fps, window=window, motion=motion)

    assert sum(one.keep for one in windows) == frames
    assert [one.index for one in windows] == list(range(len(windows)))
    done = 0
    for one in windows:
        assert one.frames % 4 == 1
        assert one.frames <= window
        assert one.motion == (motion if done else 0)
        assert one.start + one.motion == done
        assert 0 < one.keep <= one.frames - one.motion
        done += one.keep
        # The next window continues from that many frames.
        assert done == frames or one.motion + one.keep >= motion
    fixed = plan_windows(frames, window=window, motion=motion)
    loud = sum(not seam.pause for seam in seams.seams)
    cuts = [(one.start + one.motion - 0.5) / fps for one in fixed[1:]]
    heard = loudness_at(Loudness(RATE, levels), np.array(cuts), max(0.1, 1 / fps)) if cuts else np.zeros(0)
    # Each added window avoids at least one cut in speech.
    assert len(windows) - len(fixed) <= max(0, int((heard > PAUSE).sum()) - loud)


def test_planning_an_hour_is_quick_and_can_be_cancelled() -> None:
    asked = threading.Event()
    asked.set()
    with pytest.raises(Cancelled):
        plan_in_pauses(90_000, speech(3600, []), fps=25, window=81, motion=9, cancel=asked)


def write(path: Path, samples: np.ndarray, rate: int = 16_000) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1 if samples.ndim == 1 else samples.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((samples * 32767).astype("<i2").tobytes())
    return path


def test_loudness_is_relative_to_each_voice_and_the_loudest_counts(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    loud, soft = rng.uniform(-0.5, 0.5, 32_000), rng.uniform(-0.005, 0.005, 32_000)
    loud[16_000:] = 0
    soft[:24_000] = 0
    # A constant offset is not heard.
    files = [write(tmp_path / "loud.wav", loud + 0.1), write(tmp_path / "soft.wav", soft)]
    cuts = [inspect(path, field="request.speakers").cut for path in files]
    found = read_loudness([*files, None], [*cuts, None], [(0.0, 2.0), (0.0, 2.0), (0.0, 0.0)], 2.0).levels

    assert len(found) == 2 * RATE
    assert abs(np.median(found[:100])) < 1
    assert abs(np.median(found[150:])) < 1
    assert found[101:149].max() == FLOOR


def test_loudness_follows_the_place_of_a_voice_in_the_video_and_opposite_phases_count(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 44_100)
    file = write(tmp_path / "phases.wav", np.stack([noise, -noise], axis=1), 44_100)
    cut = inspect(file, field="request.speakers").cut
    found = read_loudness([file], [cut], [(1.0, 2.0)], 1.5).levels

    assert len(found) == 150
    assert found[:99].max() == FLOOR
    assert found[101:].min() > -3


def test_a_voice_that_ends_before_the_video_is_followed_by_silence_or_by_others(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 48_000)
    files = [write(tmp_path / "short.wav", noise[:16_000]), write(tmp_path / "long.wav", noise)]
    cuts = [inspect(path, field="request.speakers").cut for path in files]
    for order in (slice(None), slice(None, None, -1)):
        spans = [(0.0, 1.0), (0.0, 3.0)]
        assert read_loudness(files[order], cuts[order], spans[order], 3.05).levels[:300].min() > -6
    alone = read_loudness(files[:1], cuts[:1], [(0.5, 1.5)], 3.05).levels
    assert alone[55:145].min() > -6
    assert alone[155:].max() == FLOOR
