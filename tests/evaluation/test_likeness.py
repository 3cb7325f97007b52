"""Whether a video still shows the same people: the measures move little while people talk, and much when damaged.

Drawn people talk (no network, no eSpeak NG); what is done to the second half of their frames is what long videos
suffer. One test holds the measures to a recorded series of the old default, which lost its faces.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from damage import SEEDS, SHARES, Damage, blurred, clip, exchanged, melted, smeared, tinted

from engine.data import Progress
from engine.evaluation.bars import check_bars, likeness_bars
from engine.evaluation.likeness import Drift, WindowLook, drift_of, window_looks
from engine.sweeps.runs import FIGURES
from scripts.evaluate_tiny.bars import BARS, LONG_BARS
from scripts.evaluate_tiny.long_voices import Pace, sound_lag


def drift(seed: int, damage: Damage | None = None, people: int = 1) -> Drift:
    frames, picture, mouths = clip(seed, people)
    shown = frames.copy()
    if damage is not None:
        shown[50:] = damage(shown[50:], seed)
    return drift_of(window_looks(shown, picture, mouths, SHARES))


def missed(found: Drift) -> set[str]:
    """The figures of a video that do not reach their bars."""
    judged = check_bars({"worst": asdict(found)}, likeness_bars("a video", "worst"))
    assert len(judged) == 6
    return {bar["figure"].partition("/")[2] for bar in judged if not bar["holds"]}


@pytest.mark.parametrize("seed", SEEDS)
def test_talking_reaches_every_bar(seed: int) -> None:
    assert missed(drift(seed)) == set()


def test_two_people_who_talk_reach_every_bar() -> None:
    assert missed(drift(7_700_000, people=2)) == set()


@pytest.mark.parametrize("seed", SEEDS)
def test_blur_is_seen_by_the_sharpness(seed: int) -> None:
    result = drift(seed, blurred)
    assert missed(result) >= {"sharpness_kept"}
    assert result.sharpness_kept < 0.7 * drift(seed).sharpness_kept


@pytest.mark.parametrize("seed", SEEDS)
def test_a_tint_is_seen_by_the_colours(seed: int) -> None:
    assert missed(drift(seed, tinted)) >= {"colour"}


@pytest.mark.parametrize("seed", SEEDS)
def test_another_persons_face_is_seen_by_the_identity(seed: int) -> None:
    result = drift(seed, exchanged)
    assert missed(result) >= {"identity", "identity_grown"}
    assert result.identity > 2.5 * drift(seed).identity


@pytest.mark.parametrize("seed", SEEDS)
def test_a_melted_face_is_seen_by_the_identity(seed: int) -> None:
    result = drift(seed, melted)
    assert missed(result) >= {"identity_grown"}
    assert result.identity_grown > 2.5 * drift(seed).identity_grown


@pytest.mark.parametrize("seed", SEEDS)
def test_scenery_that_runs_is_seen_by_the_structure(seed: int) -> None:
    assert missed(drift(seed, smeared)) >= {"structure_lost"}


def test_of_two_people_the_worse_face_counts() -> None:
    frames, picture, mouths = clip(7_700_000, 2)
    shown = frames.copy()
    middle = shown.shape[2] // 2
    # The right one becomes the left one's mirror image.
    shown[50:, :, middle:] = shown[50:, :, :middle][:, :, ::-1]
    assert missed(drift_of(window_looks(shown, picture, mouths, SHARES))) >= {"identity", "identity_grown"}


def test_where_mouths_are_not_known_the_whole_seat_is_compared() -> None:
    frames, picture, _ = clip(7_700_000)
    seat = [(0, 0, picture.shape[1], picture.shape[0])]
    same = drift_of(window_looks(frames, picture, (), SHARES, seats=seat))
    shown = frames.copy()
    shown[50:] = clip(7_700_010)[0][50:]
    other = drift_of(window_looks(shown, picture, (), SHARES, seats=seat))
    assert other.identity > 4 * same.identity


@pytest.mark.parametrize(("style", "seconds"), [("multitalk", 15), ("multitalk", 60), ("infinitetalk", 60)])
def test_the_old_default_misses_every_bar_and_the_new_one_none(style: str, seconds: int) -> None:
    """Windows of 56 frames of the same picture and voice, as they were seen; the file says how they were made."""
    seen = json.loads((Path(__file__).parent / "long_voices.json").read_text("utf-8"))[style]
    windows = 1 + (seconds * 25 - 81) // 56
    looks = [
        WindowLook(sharpness, identity, structure, np.array([[colour, 0, 0]], np.float32))
        for sharpness, identity, structure, colour in zip(
            seen["sharpness"], seen["identity"], seen["structure"], seen["colour"], strict=True
        )
    ]
    assert len(looks) >= windows
    everything = {bar.path.rpartition("/")[2] for bar in likeness_bars("", "")}
    # The picture is still as sharp as it must be; what it shows is another.
    expected = everything - {"sharpness"} if seconds == 15 else everything
    assert missed(drift_of(looks[:windows])) == (expected if style == "multitalk" else set())


def test_a_picture_of_another_size_is_refused() -> None:
    frames, picture, mouths = clip(7_700_000)
    with pytest.raises(ValueError, match="not of the video's size"):
        window_looks(frames, picture[:, 1:], mouths, SHARES)
    with pytest.raises(ValueError, match="no window"):
        drift_of([])


def test_the_compare_page_states_the_bars_of_the_bench() -> None:
    bars = {bar.path.rpartition("/")[2]: bar.text for bar in likeness_bars("", "")}
    bars["colour_drift"] = bars.pop("colour")
    stated = {figure.place.partition(".")[2]: figure.bar for figure in FIGURES if figure.bar}
    assert stated == bars
    held = {(bar.path, bar.text) for bar in (*BARS, *LONG_BARS)}
    for path in ("long/on/worst", "long_one/worst", "long_two/worst"):
        assert {(bar.path, bar.text) for bar in likeness_bars("", path)} <= held


def test_sound_that_is_late_at_the_end_is_found() -> None:
    rng = np.random.default_rng(0)
    voices = [rng.normal(size=16_000 * 8).astype(np.float32) for _ in range(2)]
    mixed = voices[0] + voices[1]
    late = np.concatenate([np.zeros(480, np.float32), mixed])[: len(mixed)]
    assert sound_lag(mixed, voices, 8.0) == 0
    assert sound_lag(late, voices, 8.0) == pytest.approx(0.03)
    assert sound_lag(mixed[480:], voices, 7.97) == pytest.approx(-0.03)


def test_a_window_that_costs_more_than_the_first_ones_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def figures(cost: Callable[[int], float], grown: int) -> dict[str, float]:
        pace, at = Pace(), 0.0
        for window in range(1, 12):
            monkeypatch.setattr("scripts.evaluate_tiny.long_voices.time.process_time", lambda at=at: at)
            monkeypatch.setattr(
                "scripts.evaluate_tiny.long_voices.status", lambda _, window=window: 500_000 + grown * window
            )
            pace(Progress("encode", window=window, windows=11))
            pace(Progress("denoise", window=window, windows=11))
            at += cost(window)
        pace(Progress("keep", window=0, windows=11))
        return pace.figures()

    assert figures(lambda _: 2.0, 0) == {"seconds_ratio": 1.0, "mib_a_window": 0.0, "memory_ratio": 1.0}
    rising = figures(lambda window: 2.0 + 0.2 * window, 5000)
    assert rising["seconds_ratio"] > 1.1
    assert rising["memory_ratio"] > 1.05
