"""The report on windows: each figure passes its limit for its damage, and none for a good video.

Drawn people talk in four windows of a second; the third one is damaged. The limits are those of the embedded model. A
photograph that moves holds the figures of any video to the wide limits of models without their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from damage import SEEDS, Damage, blurred, exchanged, melted, tinted
from scipy.ndimage import gaussian_filter, shift
from worker_fakes import PLAN

from engine.assembly.compose import compose
from engine.assembly.reports import limits_of
from engine.data import Canvas, Limit, Plan, Report, Seat, Window
from engine.evaluation.judge import FIRST, MEASURES, SHORT, SILENT, UNHEARD, Judge
from engine.evaluation.likeness import Pictures
from engine.evaluation.voices import Floats
from scripts.train_tiny.clips import Clip, make_clip
from scripts.train_tiny.speech import synthetic

WINDOWS = tuple(Window(index, 25 * index, 25, 0, 25) for index in range(4))
BAD = slice(50, 75)
each = pytest.mark.parametrize("seed", SEEDS)


@cache
def film(seed: int, people: int = 1) -> Clip:
    size = SEEDS.get(seed, (160, 96))
    return make_clip(seed, frames=100, size=size, people=people, split="held_out", speak=synthetic)


@cache
def limits(*overrides: str) -> Mapping[str, Limit]:
    return limits_of(compose(["model=tiny", *overrides]))


def planned(size: tuple[int, int], silent: tuple[bool, ...], windows: tuple[Window, ...] = WINDOWS) -> Plan:
    """A plan of people side by side."""
    width, height = size
    edges = np.linspace(0, width, len(silent) + 1).astype(int)
    seats = tuple(
        Seat(index, (int(edges[index]), 0, int(edges[index + 1]), height), "auto", hush, 4.0, 0.0)
        for index, hush in enumerate(silent)
    )
    canvas = Canvas(size, size, size, (0, 0), "crop")
    return replace(PLAN, canvas=canvas, seats=seats, windows=windows, fps=25.0, generated_fps=25.0)


def judged(
    seed: int,
    frames: Pictures | None = None,
    *,
    people: int = 1,
    voices: tuple[Floats, ...] | None = None,
    windows: tuple[Window, ...] = WINDOWS,
    given: Mapping[str, Limit] | None = None,
) -> Report:
    made = film(seed, people)
    shown = made.frames if frames is None else frames
    plan = planned((shown.shape[2], shown.shape[1]), made.silent, windows)
    judge = Judge([made.frames[0]], plan, made.voices if voices is None else voices, given or limits())
    reports = []
    for window in windows:
        begin = window.start + window.motion
        look = judge.look(shown[begin : begin + window.keep], window)
        judge.keep(look)
        reports.append(look.report)
    return judge.report(reports)


def damaged(seed: int, damage: Damage) -> Report:
    frames = film(seed).frames.copy()
    # All of the second half is damaged at once, as in the tests of the measures themselves.
    frames[BAD] = damage(frames[50:], seed)[:25]
    return judged(seed, frames)


@each
def test_a_good_video_is_below_no_limit_and_every_figure_is_known(seed: int) -> None:
    report = judged(seed)
    assert report.below == ()
    assert report.unknown == {}
    assert set(report.limits) == set(MEASURES)
    assert all(value is not None for value in report.windows[2].figures.values())
    assert [window.badness for window in report.windows] == [0.0] * 4


def test_two_people_who_talk_are_below_no_limit() -> None:
    assert judged(7_700_000, people=2).below == ()


def frozen(frames: Pictures, _: int) -> Pictures:
    still: Pictures = np.repeat(frames[:1], len(frames), 0)
    return still


def black(frames: Pictures, _: int) -> Pictures:
    return np.zeros_like(frames)


def grey(frames: Pictures, _: int) -> Pictures:
    """Almost one colour, as a window without a picture is."""
    rng = np.random.default_rng(0)
    return (128 + rng.normal(size=frames.shape)).astype(np.uint8)


def noisy(frames: Pictures, seed: int) -> Pictures:
    rng = np.random.default_rng(seed)
    return np.clip(frames + 40 * rng.normal(size=frames.shape), 0, 255).astype(np.uint8)


def recoloured(frames: Pictures, _: int) -> Pictures:
    warmer: Pictures = np.clip(frames * np.array([1.2, 1.0, 0.8]), 0, 255).astype(np.uint8)
    return warmer


@each
@pytest.mark.parametrize(
    ("damage", "figures"),
    [
        (blurred, {"sharpness_kept"}),
        (noisy, {"sharpness"}),
        (tinted, {"colour_drift"}),
        (recoloured, {"colour", "colour_drift"}),
        (exchanged, {"identity", "identity_grown"}),
        (melted, {"identity_grown"}),
        (black, {"blank", "sharpness", "colour"}),
        (grey, {"blank"}),
    ],
)
def test_damage_of_a_window_is_seen_by_its_figure_in_that_window_only(
    seed: int, damage: Damage, figures: set[str]
) -> None:
    report = damaged(seed, damage)
    bad = report.windows[2]
    assert set(bad.below) >= figures
    assert bad.badness > 0
    # The next window's first frame differs from the damaged one before it, which is a seam and no other fault.
    assert set(report.windows[0].below) == set(report.windows[1].below) == set()
    assert set(report.windows[3].below) <= {"seam"}
    assert report.below[0] == 3


@each
def test_frames_that_stand_still_while_the_voice_speaks_are_seen(seed: int) -> None:
    frames = film(seed).frames.copy()
    frames[50:] = frames[50]
    report, good = judged(seed, frames), judged(seed)
    figures = [window.figures["still"] or 0 for window in report.windows]
    assert figures[:2] == [window.figures["still"] or 0 for window in good.windows][:2] == [0, 0]
    # As long as somebody speaks without a pause in the picture.
    assert 0.3 < max(figures[2:]) <= 1.0
    assert any("still" in window.below for window in report.windows[2:])


def test_frames_that_stand_still_while_nobody_speaks_are_no_fault() -> None:
    made = film(7_700_000)
    frames = made.frames.copy()
    frames[BAD] = frames[50]
    voice = made.voices[0].copy()
    voice[32_000 - 6_400 : 48_000 + 6_400] = 0
    report = judged(7_700_000, frames, voices=(voice,))
    assert report.windows[2].figures["still"] is None
    assert report.windows[2].unknown["still"] == SILENT


@each
def test_a_jump_where_windows_meet_is_seen_and_one_inside_a_window_is_no_seam(seed: int) -> None:
    frames = film(seed).frames.copy()
    # As if the camera had been moved between two windows: by three pixels, with the edge repeated.
    frames[50:] = np.stack([shift(frame, (0, 3, 0), order=0, mode="nearest") for frame in frames[50:]])
    report = judged(seed, frames)
    assert "seam" in report.windows[2].below
    windows = (Window(0, 0, 41, 0, 41), Window(1, 41, 59, 0, 59))
    inside = judged(seed, frames, windows=windows)
    assert "seam" not in inside.windows[1].below


@each
def test_a_mouth_that_follows_another_voice_is_seen(seed: int) -> None:
    good = judged(seed)
    other = judged(seed, voices=film(seed + 20).voices)
    speaks = [window for window in good.windows if window.figures["mouth"] is not None]
    assert len(speaks) > 1
    assert min(window.figures["mouth"] or 0 for window in speaks) > 0.7
    assert any("mouth" in window.below for window in other.windows)


def test_a_mouth_that_stays_shut_while_its_voice_speaks_is_seen() -> None:
    seed = 7_700_000
    made = film(seed)
    frames = made.frames.copy()
    x0, y0, x1, y1 = (round(edge) for edge in made.mouth_boxes[0, 0])
    # Only the mouth stands; the head's place is that of the first frame.
    frames[BAD, y0:y1, x0:x1] = frames[0, y0:y1, x0:x1]
    assert "mouth" in judged(seed, frames).windows[2].below


def test_blur_of_all_windows_is_seen_against_the_picture() -> None:
    frames = np.stack([gaussian_filter(frame, (1.5, 1.5, 0)) for frame in film(7_700_000).frames])
    report = judged(7_700_000, frames)
    assert all("sharpness" in window.below for window in report.windows)


def test_what_a_measure_cannot_know_it_calls_unknown_with_the_reason() -> None:
    first = judged(7_700_000).windows[0]
    relative = ("seam", "sharpness_kept", "identity_grown", "colour_drift")
    assert [first.unknown[name] for name in relative] == [FIRST] * 4
    # This person says little in the first second.
    assert first.unknown["identity"] == UNHEARD
    short = judged(7_700_000, windows=(Window(0, 0, 9, 0, 9),))
    assert short.unknown["identity"] == short.unknown["mouth"] == SHORT
    assert short.unknown["seam"] == "there is only one window"
    assert not {"identity", "mouth", "seam"} & set(short.windows[0].figures)
    silent = judged(7_700_000, voices=(np.zeros_like(film(7_700_000).voices[0]),))
    assert silent.unknown["still"] == silent.unknown["mouth"] == SILENT


def test_faces_and_mouths_of_photographs_are_unknown() -> None:
    report = judged(7_700_000, given=limits_of(compose(["model=multitalk"])))
    assert {"identity", "identity_grown", "mouth"} <= set(report.unknown)
    assert "drawn people" in report.unknown["identity"]
    assert report.below == ()


def test_a_limit_of_null_turns_its_measure_off() -> None:
    report = judged(7_700_000, given=limits("report.seam=null"))
    assert "seam" in report.unknown
    assert "seam" not in report.limits


def test_a_video_of_one_frame_is_judged() -> None:
    report = judged(7_700_000, windows=(Window(0, 0, 1, 0, 1),))
    assert report.below == ()
    assert report.windows[0].figures["blank"] == 0


def test_looking_at_another_try_of_a_window_does_not_change_what_is_kept() -> None:
    made = film(7_700_000)
    judge = Judge([made.frames[0]], planned((160, 96), made.silent), made.voices, limits())
    judge.keep(judge.look(made.frames[:25], WINDOWS[0]))
    once = judge.look(made.frames[25:50], WINDOWS[1]).report
    judge.look(noisy(made.frames[25:50], 1), WINDOWS[1])
    assert judge.look(made.frames[25:50], WINDOWS[1]).report == once


def test_a_judge_that_continues_from_the_state_of_another_gives_the_same_figures() -> None:
    made = film(7_700_000)
    first, second = (Judge([made.frames[0]], planned((160, 96), made.silent), made.voices, limits()) for _ in range(2))
    for window in WINDOWS[:2]:
        first.keep(first.look(made.frames[window.start : window.start + 25], window))
    second.restore(first.state())
    look = [judge.look(made.frames[50:75], WINDOWS[2]).report for judge in (first, second)]
    assert look[0] == look[1]
    assert look[0].figures["identity_grown"] is not None
    assert sum(value.nbytes for value in first.state().values() if isinstance(value, np.ndarray)) < 50_000
    second.restore({})
    assert second.look(made.frames[50:75], WINDOWS[2]).report.unknown["seam"] == FIRST


def test_windows_of_another_picture_are_compared_with_that_picture() -> None:
    made, other = film(7_700_000), film(7_700_010)
    plan, pictures = planned((160, 96), made.silent), [made.frames[0], other.frames[0]]
    judge = Judge(pictures, plan, made.voices, limits(), shows=lambda index: index // 2)
    reports = []
    for window in WINDOWS:
        shown = (other if window.index >= 2 else made).frames
        look = judge.look(shown[window.start : window.start + 25], window)
        judge.keep(look)
        reports.append(look.report)
    assert [set(report.below) - {"mouth"} for report in reports] == [set()] * 4
    assert reports[2].unknown["seam"] == reports[2].unknown["colour_drift"] == FIRST
    assert reports[3].figures["colour_drift"] is not None


# --- photographs ------------------------------------------------------------------------------------------------------


@cache
def photograph() -> Pictures:
    """A photograph of a person for two seconds: the camera drifts, the mouth opens and shuts, every frame has grain."""
    from PIL import Image
    from skimage import data

    person = data.astronaut()[:, 16:496]  # type: ignore[no-untyped-call]
    picture = np.asarray(Image.fromarray(person).resize((256, 272)))[:256]
    rng = np.random.default_rng(0)
    frames = []
    for number in range(50):
        moved = shift(picture, (0.6 * np.sin(number / 7), 0.05 * number, 0), order=1, mode="nearest").astype(np.float32)
        opened = round(3 * (1 + np.sin(number)))
        moved[82 : 82 + opened, 106:122] *= 0.5
        frames.append(np.clip(moved + 2 * rng.normal(size=moved.shape), 0, 255).astype(np.uint8))
    return np.stack(frames)


def seen(frames: Pictures) -> Report:
    windows = (Window(0, 0, 25, 0, 25), Window(1, 25, 25, 0, 25))
    voice = film(7_700_000).voices[0]
    judge = Judge([photograph()[0]], planned((256, 256), (False,), windows), [voice], photographs())
    reports = []
    for window in windows:
        look = judge.look(frames[window.start : window.start + 25], window)
        judge.keep(look)
        reports.append(look.report)
    return judge.report(reports)


@cache
def photographs() -> Mapping[str, Limit]:
    return limits_of(compose(["model=multitalk"]))


def test_a_good_photograph_that_moves_is_below_no_limit() -> None:
    assert seen(photograph()).below == ()


@pytest.mark.parametrize(
    ("damage", "figure"),
    [
        (lambda frames: np.stack([gaussian_filter(frame, (2, 2, 0)) for frame in frames]), "sharpness_kept"),
        (lambda frames: np.stack([gaussian_filter(frame, (3, 3, 0)) for frame in frames]), "sharpness"),
        (lambda frames: noisy(frames, 0), "sharpness"),
        (lambda frames: frames[..., ::-1], "colour_drift"),
        (lambda frames: np.clip(frames * np.array([2.0, 1.0, 0.3]), 0, 255).astype(np.uint8), "colour"),
        (lambda frames: np.zeros_like(frames), "blank"),
        (lambda frames: frames[:, :, ::-1], "seam"),
    ],
)
def test_damage_of_a_photograph_is_seen(damage: Callable[[Pictures], Pictures], figure: str) -> None:
    frames = photograph().copy()
    frames[25:] = damage(frames[25:])
    assert figure in seen(frames).windows[1].below


def test_a_photograph_that_stands_still_while_the_voice_speaks_is_seen() -> None:
    frames = photograph().copy()
    frames[25:] = frames[25]
    figure = seen(frames).windows[1].figures["still"]
    good = seen(photograph()).windows[1].figures["still"]
    assert good == 0
    assert figure is not None
    assert figure > 0.3
