"""Prompts and pictures by time begin with a window, and an entry without one is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.data import Cue, Media, PlanInputs, Request, Speaker
from engine.data.plan import cue_of
from engine.errors import RequestError
from engine.stages.plan import plan_walk
from engine.stages.read import check_request
from engine.stages.timeline import PROMPTS, plan_cues
from engine.stages.windows import plan_windows

INPUTS = PlanInputs(
    model="tiny",
    resolution="small",
    buckets={"1.00": (64, 64)},
    native_fps=25.0,
    window=81,
    motion=9,
    sampler="euler",
    steps=4,
    guidance="cfg",
    passes=1,
    untrained=False,
    weights=Path("weights"),
    style="infinitetalk",
)
REQUEST = Request("", "a.png", (Speaker("a.wav"),), prompts=(Cue("sad", 0), Cue("happy", 3.2)))
MEDIA = Media(Path("a.png"), (64, 64), (Path("a.wav"),), (10.0,), (None,))


def refused(request: Request, media: Media = MEDIA) -> RequestError:
    def plan() -> None:
        check_request(request)
        plan_walk(request, media, INPUTS)

    with pytest.raises(RequestError) as caught:
        plan()
    assert str(caught.value).isprintable()
    return caught.value


def test_a_prompt_begins_with_the_window_that_begins_nearest_to_its_time() -> None:
    plan = plan_walk(REQUEST, MEDIA, INPUTS)
    assert [(cue.requested, cue.window, cue.begins) for cue in plan.prompts] == [(0.0, 0, 0.0), (3.2, 1, 3.24)]
    assert [cue_of(plan.prompts, window.index) for window in plan.windows] == [0, 1, 1, 1]
    # 9 motion frames, so that new frames begin at 81 and at 153.
    later = replace(REQUEST, prompts=(Cue("sad", 0), Cue("happy", 5.0)))
    assert plan_walk(later, MEDIA, INPUTS).prompts[1].begins == 153 / 25


def test_a_rounded_time_is_told_and_an_exact_one_is_not() -> None:
    rounded = [text for text in plan_walk(REQUEST, MEDIA, INPUTS).warnings if "prompts[1]" in text]
    assert rounded == ["prompts[1]: from 3.2 s becomes window 2, 3.24 s, because a window has one prompt"]
    exact = replace(REQUEST, prompts=(Cue("sad", 0), Cue("happy", frame=81)))
    plan = plan_walk(exact, MEDIA, INPUTS)
    assert plan.prompts[1].requested == plan.prompts[1].begins == 3.24
    assert not [text for text in plan.warnings if "prompts" in text]


def test_a_frame_is_one_of_the_finished_video() -> None:
    # At 50 frames a second half of the generated frames is shown twice.
    request = replace(REQUEST, fps=50.0, timing="native", prompts=(Cue("sad", frame=0), Cue("happy", frame=162)))
    assert plan_walk(request, MEDIA, INPUTS).prompts[1].begins == 3.24


def test_a_request_without_a_timeline_has_none_in_its_plan() -> None:
    plan = plan_walk(replace(REQUEST, prompt="sad", prompts=()), MEDIA, INPUTS)
    assert (plan.prompts, plan.images, plan.seams) == ((), (), None)
    assert cue_of(plan.prompts, 3) == 0


@pytest.mark.parametrize(
    ("cues", "field", "words"),
    [
        ([Cue("sad", 1.0)], "prompts[0].from", "nothing holds from 0 to 1 s"),
        ([Cue("sad", frame=3)], "prompts[0].from_frame", "nothing holds from 0 to frame 3"),
        ([Cue("sad", 0), Cue("happy", 5), Cue("calm", 4)], "prompts[2].from", "4 s is earlier than 5 s of the entry"),
        (
            [Cue("sad", 0), Cue("happy", 5), Cue("calm", 5.0)],
            "prompts[2].from",
            "5 s is also the time of the entry before",
        ),
        (
            [Cue("sad", 0), Cue("happy", 5), Cue("calm", frame=100)],
            "prompts[2].from_frame",
            "frame 100 is earlier than 5 s",
        ),
        ([Cue("sad", 0), Cue("happy", -1)], "prompts[1].from", "-1 is not a time"),
        ([Cue("sad", 0), Cue("happy", float("nan"))], "prompts[1].from", "nan is not a time"),
        ([Cue("sad", 0), Cue("happy", True)], "prompts[1].from", "True is not a time"),
        ([Cue("sad", 0), Cue("happy", frame=2.5)], "prompts[1].from_frame", "2.5 is not a time"),  # type: ignore[arg-type]
        ([Cue("sad", 0), Cue("happy", 1, 25)], "prompts[1].from", "both from and from_frame"),
        ([Cue("sad", 0), Cue("happy")], "prompts[1].from", "neither from nor from_frame"),
        ([Cue("sad", 0), Cue(" ", 4)], "prompts[1].text", "the prompt is empty"),
        ([Cue("sad", 0), Cue("a\ud800", 4)], "prompts[1].text", "not UTF-8"),
        ([Cue("sad", 0), "happy"], "prompts[1]", "str is not an entry"),
        ([Cue("sad", 0), Cue("happy", 10)], "prompts[1].from", "not in the video, which ends at 10.00 s"),
        ([Cue("sad", 0), Cue("happy", 1)], "prompts[1].from", "the nearest window to 1 s is window 1 at 0.00 s"),
        ([Cue("sad", 0), Cue("happy", 3), Cue("calm", 3.5)], "prompts[2].from", "which has the prompt of entry 1"),
        ([Cue("sad", index / 10) for index in range(65)], "prompts", "65 entries are too many"),
    ],
)
def test_a_bad_entry_is_refused_by_its_place(cues: list[Cue], field: str, words: str) -> None:
    error = refused(replace(REQUEST, prompts=tuple(cues)))
    assert (error.field, words in error.what, bool(error.hint)) == (f"request.{field}", True, True), str(error)


def test_an_entry_without_a_window_is_told_when_windows_begin() -> None:
    error = refused(replace(REQUEST, prompts=(Cue("sad", 0), Cue("happy", 1))))
    assert error.hint.startswith("windows begin later at 3.24, 6.12, 9.00 s")
    short = replace(MEDIA, seconds=(2.0,))
    assert "no window begins later" in refused(replace(REQUEST, prompts=(Cue("a", 0), Cue("b", 1))), short).hint


def test_one_prompt_and_a_timeline_contradict_each_other() -> None:
    error = refused(replace(REQUEST, prompt="sad"))
    assert (error.field, error.code) == ("request.prompts", "conflict")
    images = replace(REQUEST, images=(Cue("a.png", 0), Cue("b.png", 4)))
    assert (refused(images).field, refused(images).code) == ("request.images", "conflict")


def test_pictures_by_time_need_windows_that_see_the_picture() -> None:
    request = replace(REQUEST, image="", images=(Cue("a.png", 0), Cue("b.png", 4)))
    media = replace(MEDIA, images=(Path("b.png"),), image_sizes=((128, 96),))
    plan = plan_walk(request, media, INPUTS)
    assert [cue.window for cue in plan.images] == [0, 1]
    # Scaled to cover the first picture's size.
    assert [(canvas.source, canvas.target) for canvas in plan.canvases] == [((128, 96), (64, 64))]
    with pytest.raises(RequestError, match=r"continuation\.style=multitalk continues from the frames before") as caught:
        plan_walk(request, media, replace(INPUTS, style="multitalk"))
    assert (caught.value.field, caught.value.code) == ("request.images", "conflict")


@given(frames=st.integers(2, 2000), data=st.data())
def test_each_entry_has_a_window_of_its_own_or_is_refused(frames: int, data: st.DataObject) -> None:
    windows = plan_windows(frames, window=81, motion=9)
    times = sorted(data.draw(st.sets(st.integers(1, frames - 1), max_size=4)))
    cues = [Cue("a", frame=0), *(Cue("b", frame=time) for time in times)]
    try:
        planned = plan_cues(cues, PROMPTS, windows, seconds=frames / 25, fps=25, generated_fps=25)
    except RequestError as error:
        assert error.field.startswith("request.prompts[")  # noqa: PT017 - either is right
        return
    firsts = [cue.window for cue in planned]
    assert firsts == sorted(set(firsts))
    assert firsts[0] == 0
    assert sorted({cue_of(planned, window.index) for window in windows}) == list(range(len(cues)))
    for cue in planned:
        assert (
            abs(cue.begins - cue.requested)
            <= min(abs((w.start + w.motion) / 25 - cue.requested) for w in windows) + 1e-6
        )
