"""The plan says what will be made, before anything is loaded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from engine.data import Media, Request, Settings, Speaker
from engine.errors import RequestError
from engine.stages.plan import plan_walk

SETTINGS = Settings(
    model="tiny",
    resolution="small",
    buckets={"0.60": (96, 160), "1.00": (128, 128)},
    native_fps=25.0,
    window=81,
    motion=25,
    sampler="euler (standard)",
    steps=10,
    guidance="cfg",
    passes=2,
    untrained=False,
    weights=Path("weights"),
)
REQUEST = Request(prompt="two people talk", image="picture.png", speakers=(Speaker("a.wav"), Speaker("b.wav")))


def media(*seconds: float) -> Media:
    return Media(
        image=Path("picture.png"),
        image_size=(320, 192),
        voices=tuple(Path(f"{s}.wav") if s else None for s in seconds),
        seconds=seconds,
        masks=(None,) * len(seconds),
    )


def test_length_is_the_longest_voice() -> None:
    plan = plan_walk(REQUEST, media(2.0, 4.0), SETTINGS)
    assert (plan.frames, plan.fps, plan.seconds) == (100, 25.0, 4.0)


def test_voices_one_after_the_other_add_up() -> None:
    plan = plan_walk(replace(REQUEST, audio_type="add"), media(2.0, 4.0), SETTINGS)
    assert plan.frames == 150
    assert [seat.begins for seat in plan.seats] == [0.0, 2.0]


def test_forwards_count_windows_steps_and_passes() -> None:
    plan = plan_walk(replace(REQUEST, frames=100), media(4.0, 4.0), SETTINGS)
    assert len(plan.windows) == 2
    assert plan.forwards == 2 * 10 * 2


def test_native_timing_generates_more_frames_than_it_delivers() -> None:
    plan = plan_walk(replace(REQUEST, frames=16, fps=8.0, timing="native"), media(2.0, 2.0), SETTINGS)
    assert (plan.frames, plan.generated_frames, plan.generated_fps) == (16, 48, 25.0)
    assert not any("native" in warning for warning in plan.warnings)


def test_direct_timing_away_from_the_native_rate_is_a_warning() -> None:
    plan = plan_walk(replace(REQUEST, fps=8.0), media(2.0, 2.0), SETTINGS)
    assert plan.generated_frames == plan.frames == 16
    assert any("timing=native" in warning for warning in plan.warnings)


@pytest.mark.parametrize(("frames", "word"), [(10, "is cut"), (200, "silence follows")])
def test_frames_that_differ_from_the_audio_are_said(frames: int, word: str) -> None:
    plan = plan_walk(replace(REQUEST, frames=frames), media(2.0, 3.0), SETTINGS)
    assert any(word in warning for warning in plan.warnings)


def test_untrained_weights_are_said() -> None:
    plan = plan_walk(REQUEST, media(1.0, 1.0), replace(SETTINGS, untrained=True))
    assert plan.untrained
    assert any("untrained" in warning for warning in plan.warnings)


def test_absent_weights_do_not_stop_a_plan() -> None:
    plan = plan_walk(REQUEST, media(1.0, 1.0), replace(SETTINGS, weights=None, absent="yet: looked in /nowhere"))
    assert any("/nowhere" in warning for warning in plan.warnings)


def test_absurd_length_is_refused() -> None:
    with pytest.raises(RequestError, match="too many"):
        plan_walk(replace(REQUEST, frames=10**9), media(1.0, 1.0), SETTINGS)


def test_nobody_speaking_needs_a_length() -> None:
    silent = replace(REQUEST, speakers=(Speaker(None), Speaker(None)))
    with pytest.raises(RequestError, match="nobody speaks"):
        plan_walk(silent, media(0.0, 0.0), SETTINGS)


LONG = replace(SETTINGS, holds=(15.0, "its authors", "model=infinitetalk"))


def test_a_video_longer_than_the_style_holds_a_face_is_told_and_what_would_do() -> None:
    (warning,) = plan_walk(REQUEST, media(60.0, 60.0), LONG).warnings
    for part in (
        "continuation.style=multitalk",
        "15 s, 375 frames (its authors)",
        "this video has 1500",
        "model=infinitetalk",
    ):
        assert part in warning
    assert not plan_walk(REQUEST, media(15.0, 15.0), LONG).warnings
    assert not plan_walk(REQUEST, media(60.0, 60.0), replace(LONG, holds=None)).warnings


def test_what_is_made_counts_and_not_how_long_it_is_shown() -> None:
    slow = replace(REQUEST, fps=8.0)
    assert not [text for text in plan_walk(slow, media(40.0, 40.0), LONG).warnings if "holds a face" in text]
    native = plan_walk(replace(slow, timing="native"), media(40.0, 40.0), LONG)
    assert [text for text in native.warnings if "holds a face" in text]
    # One window goes on from nothing.
    wide = replace(LONG, window=401)
    assert not [text for text in plan_walk(REQUEST, media(16.0, 16.0), wide).warnings if "holds a face" in text]
