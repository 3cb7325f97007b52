"""The plan says what will be made, before anything is loaded."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from engine.data import Media, PlanInputs, Request, Speaker
from engine.data.budget import Budget
from engine.errors import Cancelled, RequestError
from engine.stages.plan import plan_walk

INPUTS = PlanInputs(
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
    plan = plan_walk(REQUEST, media(2.0, 4.0), INPUTS)
    assert (plan.frames, plan.fps, plan.seconds) == (100, 25.0, 4.0)


def test_voices_one_after_the_other_add_up() -> None:
    plan = plan_walk(replace(REQUEST, audio_type="add"), media(2.0, 4.0), INPUTS)
    assert plan.frames == 150
    assert [seat.begins for seat in plan.seats] == [0.0, 2.0]


def test_forwards_count_windows_steps_and_passes() -> None:
    plan = plan_walk(replace(REQUEST, frames=100), media(4.0, 4.0), INPUTS)
    assert len(plan.windows) == 2
    assert plan.forwards == 2 * 10 * 2


def test_forwards_count_the_evaluations_of_a_sampler_that_makes_several_a_step() -> None:
    settings, request = replace(INPUTS, evaluations=19), replace(REQUEST, frames=100)
    assert plan_walk(request, media(4.0, 4.0), settings).forwards == 2 * 19 * 2
    few = replace(request, budget=replace(request.budget, forwards=75))
    with pytest.raises(RequestError, match="10 steps of 19 evaluations and 2 passes per step make 76 forwards"):
        plan_walk(few, media(4.0, 4.0), settings)


def test_a_plan_counts_the_forwards_with_every_retake_and_its_budget_holds_them() -> None:
    settings, request = replace(INPUTS, retakes=2), replace(REQUEST, frames=100)
    plan = plan_walk(request, media(4.0, 4.0), settings)
    assert plan.most_forwards == 3 * plan.forwards
    assert plan_walk(request, media(4.0, 4.0), INPUTS).most_forwards is None
    enough = replace(request, budget=replace(request.budget, forwards=3 * plan.forwards))
    assert plan_walk(enough, media(4.0, 4.0), settings).retakes == 2
    few = replace(request, budget=replace(request.budget, forwards=3 * plan.forwards - 1))
    with pytest.raises(RequestError, match=r"2 retakes of each.*fewer steps or retakes"):
        plan_walk(few, media(4.0, 4.0), settings)


def test_native_timing_generates_more_frames_than_it_delivers() -> None:
    plan = plan_walk(replace(REQUEST, frames=16, fps=8.0, timing="native"), media(2.0, 2.0), INPUTS)
    assert (plan.frames, plan.generated_frames, plan.generated_fps) == (16, 48, 25.0)
    assert not any("native" in warning for warning in plan.warnings)


def test_direct_timing_away_from_the_native_rate_is_a_warning() -> None:
    plan = plan_walk(replace(REQUEST, fps=8.0), media(2.0, 2.0), INPUTS)
    assert plan.generated_frames == plan.frames == 16
    assert any("timing=native" in warning for warning in plan.warnings)


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        (10, "voice 1 is cut from 0.40 s to 2.00 s, voice 2 is cut from 0.40 s to 3.00 s"),
        (60, "voice 2 is cut from 2.40 s to 3.00 s"),
        (200, "the voices end, and silence follows from 3.00 s to 8.00 s"),
    ],
)
def test_the_first_warning_says_what_of_the_voices_is_cut_or_silent_and_names_auto(frames: int, words: str) -> None:
    untrained = replace(INPUTS, untrained=True, tile=64)
    plan = plan_walk(replace(REQUEST, frames=frames, fps=25), media(2.0, 3.0), untrained)
    fitting = 'num_frames "auto" (--frames auto) makes a video as long as the voices: 3.00 s'
    assert plan.warnings[0] == f"{words}; {fitting}"


def test_a_single_voice_is_not_numbered_and_a_later_one_is_cut_from_its_beginning() -> None:
    one = replace(REQUEST, speakers=REQUEST.speakers[:1], frames=100, fps=8.0)
    assert plan_walk(one, media(14.2), INPUTS).warnings[0].startswith("the voice is cut from 12.50 s to 14.20 s;")
    after = replace(REQUEST, audio_type="add", frames=50, fps=25.0)
    assert (
        plan_walk(after, media(3.0, 1.0), INPUTS)
        .warnings[0]
        .startswith("voice 1 is cut from 2.00 s to 3.00 s, voice 2 is cut from 3.00 s to 4.00 s;")
    )


@pytest.mark.parametrize("frames", [None, "auto"])
@pytest.mark.parametrize("fps", [1.0, 7.5, 8.0, 25.0, 60.0, None])
def test_a_video_as_long_as_its_voices_leaves_no_tenth_of_a_second_out(
    frames: Literal["auto"] | None, fps: float
) -> None:
    for seconds in (0.04, 0.9, 4.875, 59.99):
        plan = plan_walk(replace(REQUEST, frames=frames, fps=fps), media(0.02, seconds), INPUTS)
        assert plan.fps == (fps or 25.0)
        assert -1 / plan.fps <= seconds - plan.seconds <= 0.1
        assert not any("auto" in warning for warning in plan.warnings)


def test_a_video_as_long_as_its_voices_has_a_limit_in_seconds() -> None:
    short = replace(REQUEST, budget=Budget(frames=201, seconds=600))
    assert plan_walk(short, media(600.0, 5.0), INPUTS).frames == 15000
    with pytest.raises(RequestError, match=r"the voices last 600.50 s, and .* may last 600 s here") as caught:
        plan_walk(short, media(600.5, 5.0), INPUTS)
    assert (caught.value.field, caught.value.code) == ("request.frames", "out_of_range")
    with pytest.raises(RequestError, match="may last 3600 s"):
        plan_walk(replace(REQUEST, audio_type="add"), media(2000.0, 2000.0), INPUTS)


def test_untrained_weights_are_said() -> None:
    plan = plan_walk(REQUEST, media(1.0, 1.0), replace(INPUTS, untrained=True))
    assert plan.untrained
    assert any("untrained" in warning for warning in plan.warnings)


def test_absent_weights_do_not_stop_a_plan() -> None:
    plan = plan_walk(REQUEST, media(1.0, 1.0), replace(INPUTS, weights=None, absent="yet: looked in /nowhere"))
    assert any("/nowhere" in warning for warning in plan.warnings)


def test_absurd_length_is_refused() -> None:
    with pytest.raises(RequestError, match="too many"):
        plan_walk(replace(REQUEST, frames=10**9), media(1.0, 1.0), INPUTS)


def test_nobody_speaking_needs_a_length() -> None:
    silent = replace(REQUEST, speakers=(Speaker(None), Speaker(None)))
    with pytest.raises(RequestError, match="nobody speaks"):
        plan_walk(silent, media(0.0, 0.0), INPUTS)


@pytest.mark.parametrize(
    ("size", "told"),
    [
        ((12000, 300), "12000 x 300 is cropped (left and right)"),
        ((200, 9000), "200 x 9000 is cropped (top and bottom)"),
        ((640, 640), ""),
        ((1600, 900), ""),
    ],
)
def test_crop_that_loses_much_of_the_picture_is_a_warning_that_names_pad(size: tuple[int, int], told: str) -> None:
    request, shown = replace(REQUEST, speakers=REQUEST.speakers[:1]), replace(media(1.0), image_size=size)
    found = [warning for warning in plan_walk(request, shown, INPUTS).warnings if "of the picture" in warning]

    assert len(found) == bool(told)
    assert told in "".join(found)
    assert not told or "fit=pad" in found[0]
    padded = plan_walk(replace(request, fit="pad"), shown, INPUTS).warnings
    assert not any("of the picture" in warning for warning in padded)


#: Of a worker that was told nothing.
WORKER = Budget(frames=201, seconds=600, steps=100, forwards=50_000)


@pytest.mark.parametrize(
    ("change", "inputs", "field", "words"),
    [
        ({"frames": 202}, {}, "request.frames", "at most 201"),
        (
            {"frames": 201, "fps": 1.0, "timing": "native"},
            {"native_fps": 60.0, "steps": 100, "passes": 3},
            "request.frames",
            "50000",
        ),
        (
            {"frames": 201, "fps": 1.0, "timing": "native"},
            {"native_fps": 1e4},
            "request.frames",
            "generated for 201.00 s",
        ),
        ({"frames": 100}, {"steps": 101}, "sampler.steps", "at most 100"),
        ({"overrides": ("sampler.steps=500",)}, {"steps": 500}, "overrides (sampler.steps)", "at most 100"),
        ({"frames": None}, {"steps": 100, "motion": 77}, "request.frames", "forwards"),
    ],
)
def test_a_request_is_held_to_its_budget_once_all_is_composed(
    change: dict[str, Any], inputs: dict[str, Any], field: str, words: str
) -> None:
    request = replace(REQUEST, budget=WORKER, **change)
    with pytest.raises(RequestError) as caught:
        plan_walk(request, media(500.0, 1.0), replace(INPUTS, **inputs))
    assert (caught.value.field, caught.value.code) == (field, "out_of_range")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [{"fps": 8.0, "timing": "native"}, {"fps": 1.0, "timing": "native"}, {"fps": 60.0}, {"frames": None, "fps": 60.0}],
)
def test_what_the_limits_of_a_worker_are_meant_to_let_through_is_planned(change: dict[str, Any]) -> None:
    request = replace(REQUEST, **{"budget": WORKER, "frames": 201, **change})
    plan = plan_walk(request, media(600.0, 1.0), replace(INPUTS, steps=20, passes=3))
    assert plan.forwards == len(plan.windows) * 20 * 3 <= WORKER.forwards


def test_a_long_video_of_few_frames_is_refused_before_an_array_is_made() -> None:
    with pytest.raises(RequestError, match="last 5000"):
        plan_walk(replace(REQUEST, frames=5000, fps=1.0), media(1.0, 1.0), INPUTS)


def test_a_plan_can_be_cancelled() -> None:
    asked = threading.Event()
    asked.set()
    with pytest.raises(Cancelled):
        plan_walk(replace(REQUEST, frames=200), media(1.0, 1.0), INPUTS, cancel=asked)


LONG = replace(INPUTS, holds=(15.0, "its authors", "model=infinitetalk"))


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
    assert not [text for text in plan_walk(slow, media(40.0, 40.0), LONG).warnings if "keeps a face" in text]
    native = plan_walk(replace(slow, timing="native"), media(40.0, 40.0), LONG)
    assert [text for text in native.warnings if "keeps a face" in text]
    # One window goes on from nothing.
    wide = replace(LONG, window=401)
    assert not [text for text in plan_walk(REQUEST, media(16.0, 16.0), wide).warnings if "keeps a face" in text]


def test_a_negative_prompt_that_no_pass_sees_is_told() -> None:
    told = [
        plan_walk(request, media(2.0, 4.0), replace(INPUTS, negative=negative)).warnings
        for request in (replace(REQUEST, negative_prompt="rain"), replace(REQUEST, negative_prompt=""), REQUEST)
        for negative in (False, True)
    ]
    assert ["negative prompt has no effect" in " ".join(warnings) for warnings in told] == [True, *[False] * 5]


def test_more_speakers_than_a_model_was_made_for_are_refused() -> None:
    with pytest.raises(RequestError, match="made for 1 speaker, not for 2") as caught:
        plan_walk(REQUEST, media(2.0, 4.0), replace(INPUTS, speakers=1))
    assert caught.value.field == "request.speakers"
    assert plan_walk(REQUEST, media(2.0, 4.0), replace(INPUTS, speakers=2)).seats
