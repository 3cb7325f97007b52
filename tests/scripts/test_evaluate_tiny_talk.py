"""The bench of the embedded model: what it measures on drawn frames, without a network, and how it is asked."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engine.data import Delivery, Plan, Request, Window
from engine.errors import EngineError, RequestError
from engine.evaluation.bars import check_bars
from engine.evaluation.frames import read_video
from engine.evaluation.metrics import (
    LEAD,
    Pictures,
    by_skin,
    codec_errors,
    lab_drift,
    lag_share,
    own_and_cross,
    seam_ratio,
    spread,
    window_sync,
)
from engine.service import EngineService
from scripts.evaluate_tiny import cases, kinds, talk
from scripts.evaluate_tiny.__main__ import main
from scripts.evaluate_tiny.bars import BARS
from scripts.evaluate_tiny.cases import Case, find_cases, find_pieces, prepare, write_film, write_voice
from scripts.evaluate_tiny.films import apart, generate_video, liveliness, mouth_rows, regions
from scripts.evaluate_tiny.kinds import KINDS
from scripts.evaluate_tiny.long_voices import long_voices
from scripts.evaluate_tiny.studio import Studio
from scripts.train_tiny.clips import SAMPLED_AT
from scripts.train_tiny.scene import random_scene
from scripts.train_tiny.speech import synthetic

WINDOWS = (Window(0, 0, 33, 0, 33), Window(1, 24, 33, 9, 24))


def case(folder: Path, seed: int = 0, **wanted: Any) -> Case:
    """The first case from `seed` on, with voices that need no eSpeak NG."""
    settings: dict[str, Any] = {"frames": 41, "people": 2, "sizes": [(160, 96)], "speak": synthetic} | wanted
    (result,) = find_cases(seed, 1, folder, **settings)
    return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("talk")


@pytest.fixture(scope="module")
def made(folder: Path) -> Case:
    return case(folder)


@pytest.fixture(scope="module")
def shown(made: Case) -> Pictures:
    return read_video(made.rendered)


@cache
def noise(frames: int = 57) -> Pictures:
    return np.random.default_rng(0).integers(96, 160, (frames, 32, 32, 3), np.uint8)


class Drawn:
    """A service that films a case by drawing what is to be seen."""

    def __init__(self, service: EngineService, folder: Path, cases: Callable[[Request], Pictures]) -> None:
        self.service, self.folder, self.cases = service, folder, cases
        self.plans: list[Plan] = []

    def generate(self, request: Request, **_: Any) -> Delivery:
        plan = self.service.plan(request)
        self.plans.append(plan)
        path = self.folder / f"film-{len(self.plans)}.mp4"
        write_film(path, self.cases(request), plan.fps)
        return Delivery(
            *(str(path), None, "", 0),
            media_type="video/mp4",
            seconds=plan.seconds,
            frames=plan.frames,
            fps=plan.fps,
            seed=plan.seed,
            timings={},
            plan=plan,
        )


def test_the_lead_is_the_one_that_clips_are_drawn_with() -> None:
    assert LEAD == SAMPLED_AT


def test_drawn_mouths_follow_their_own_voice_and_not_the_others(made: Case, shown: Pictures) -> None:
    rows = mouth_rows(shown, made, fps=25)
    assert all(row.own is not None and row.own > 0.95 for row in rows)
    assert all(row.cross is not None and row.cross < 0.6 for row in rows)
    assert lag_share(rows) == 1
    assert [row.skin for row in rows] == list(made.skins)


def test_swapped_voices_do_not_fit_the_drawn_mouths(made: Case, shown: Pictures) -> None:
    straight, swapped = mouth_rows(shown, made, fps=25), mouth_rows(shown, made, fps=25, swapped=True)
    assert [row.own for row in swapped] == [row.cross for row in straight]
    assert [row.cross for row in swapped] == [row.own for row in straight]


def test_a_lag_of_two_frames_is_found_with_its_sign(made: Case, shown: Pictures) -> None:
    late = np.concatenate([shown[:1], shown[:1], shown[:-2]])
    early = np.concatenate([shown[2:], shown[-1:], shown[-1:]])
    assert [row.lag for row in mouth_rows(late, made, fps=25)] == [2, 2]
    assert [row.lag for row in mouth_rows(early, made, fps=25)] == [-2, -2]
    assert lag_share(mouth_rows(late, made, fps=25)) == 0


def test_the_given_picture_does_not_count(made: Case, shown: Pictures) -> None:
    black = shown.copy()
    for x0, y0, x1, y1 in regions(shown, made).round().astype(int):
        black[0, y0:y1, x0:x1] = 0
    given, usual = mouth_rows(black, made, fps=25), mouth_rows(shown, made, fps=25)
    assert [row.own for row in given] == pytest.approx([row.own for row in usual], abs=1e-3)
    assert [row.moved for row in given] == pytest.approx([row.moved for row in usual], abs=1e-3)


def test_regions_grow_with_a_larger_video(made: Case, shown: Pictures) -> None:
    large = np.stack([np.asarray(Image.fromarray(frame).resize((320, 192))) for frame in shown])
    assert min(row.own or 0 for row in mouth_rows(large, made, fps=25)) > 0.95
    with pytest.raises(EngineError, match="160 x 96 became a video of 96 x 96"):
        mouth_rows(shown[:, :, :96], made, fps=25)


def test_other_frame_rates_have_curves_of_their_own(made: Case) -> None:
    assert np.allclose(made.driving(20, 12.5), made.driving(40, 25)[:, ::2])


def test_somebody_silent_has_no_correlation_but_a_deviation(folder: Path) -> None:
    quiet = case(folder, 3, silent=1)
    rows = mouth_rows(read_video(quiet.rendered), quiet, fps=25)
    still, speaking = (next(row for row in rows if (row.own is None) == silent) for silent in (True, False))
    assert quiet.silent[still.person]
    assert still.lag is None
    assert speaking.cross is None
    assert still.moved < 0.2 * speaking.moved


def test_cases_are_held_to_what_is_wanted(folder: Path) -> None:
    shut = case(folder, people=1, shut=True)
    assert shut.openings[0, 0] == 0
    assert shut.rendered.is_file()
    assert all(path.is_file() for path in (shut.image, *shut.voices))
    assert all(curve.opening(np.arange(41) / 25).std() > 0.1 for curve in shut.curves)


def test_too_few_cases_are_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cases, "prepare", lambda *_, **__: None)
    with pytest.raises(EngineError, match="0 of 2 clips"):
        find_cases(0, 2, folder, frames=9, people=1, sizes=[(96, 96)])


def test_classes_of_skin_are_as_often_one_as_another(folder: Path, made: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    def prepared(seed: int, _: Path, *, size: tuple[int, int], **__: Any) -> Case:
        return replace(made, skins=(random_scene(seed, size, 1, "held_out").people[0].skin,))

    monkeypatch.setattr(cases, "prepare", prepared)
    result = find_cases(0, 8, folder, frames=9, people=1, sizes=[(64, 64)], even=True)
    assert sorted(made.skins[0] for made in result[:6]) == [0, 1, 2, 3, 4, 5]
    assert result[6].skins != result[7].skins


def test_skin_classes_are_averaged_and_compared() -> None:
    curves = np.random.default_rng(1).random((2, 9))
    frames = np.zeros((9, 20, 40, 3), np.uint8)
    rows = own_and_cross(frames, [(0, 0, 20, 20), (20, 0, 40, 20)], curves, skins=(1, 4))
    assert by_skin(rows) == {"1": 0.0, "4": 0.0}
    assert spread({"0": 0.9, "1": 0.75, "2": None}) == 0.15
    assert spread({"0": 0.9}) is None


def test_a_jump_where_windows_meet_is_a_seam() -> None:
    smooth = noise()
    jump = smooth.copy()
    jump[33:] = 255 - jump[33:] // 2
    assert seam_ratio(smooth, WINDOWS) == pytest.approx(1, abs=0.1)
    assert (seam_ratio(jump, WINDOWS) or 0) > 2
    assert seam_ratio(smooth, WINDOWS[:1]) is None


def test_a_growing_tint_is_a_drift() -> None:
    still = np.full((50, 8, 8, 3), 120, np.uint8)
    tinted = still.copy()
    tinted[..., 0] += np.arange(50, dtype=np.uint8)[:, None, None]
    assert lab_drift(still, 25) == pytest.approx(0, abs=1e-6)
    assert lab_drift(tinted, 25) > 3


def test_sync_is_told_window_by_window(folder: Path) -> None:
    long = case(folder, frames=57)
    frames = read_video(long.rendered)
    driving = long.driving(57)
    good = window_sync(frames, long.mouths[:, 0], driving, WINDOWS)
    lost = window_sync(np.concatenate([frames[:33], frames[56:32:-1]]), long.mouths[:, 0], driving, WINDOWS)
    assert [len(window) for window in good] == [2, 2]
    assert min(min(window) for window in good) > 0.9
    assert lost[0] == pytest.approx(good[0], abs=1e-3)
    assert max(lost[1]) < 0.7


def test_a_codecs_errors_are_told_for_mouths_and_brightness() -> None:
    given = np.full((3, 8, 8, 3), 100, np.uint8)
    made = given.astype(np.float32)
    made[1] += 2
    made[:, :4, :4] += 10
    errors = codec_errors(given, made, [[(0, 0, 4, 4)] * 3])
    assert errors["psnr_mouth"] < errors["psnr"]
    assert errors["drift_mean"] == pytest.approx(10 / 4 + 2 / 3)
    assert errors["drift_max"] == pytest.approx(10 / 4 + 2)


def test_faces_that_overlap_are_parted_in_the_middle() -> None:
    left, right = apart([(0, 0, 90, 96), (70, 0, 160, 96)])
    assert (left[2], right[0]) == (80, 80)


def test_films_go_through_the_service_and_boxes_name_people_from_right_to_left(
    folder: Path, made: Case, shown: Pictures
) -> None:
    requests: list[Request] = []

    def drawn(request: Request) -> Pictures:
        requests.append(request)
        return shown

    service: Any = Drawn(EngineService(["model=tiny"]), folder, drawn)
    straight = generate_video(service, made)
    boxed = generate_video(service, made, boxes=True, overrides=("sampler=turbo",))
    assert straight.frames.shape == shown.shape
    assert [speaker.audio for speaker in requests[0].speakers] == [str(path) for path in made.voices]
    assert [speaker.audio for speaker in requests[1].speakers] == [str(path) for path in made.voices[::-1]]
    assert [seat.kind for seat in boxed.plan.seats] == ["box", "box"]
    assert boxed.plan.seats[0].box[0] >= boxed.plan.seats[1].box[2] - 1
    assert boxed.plan.forwards < straight.plan.forwards
    assert not list(folder.glob("film-*.mp4"))


def test_kinds_are_judged_without_a_network(folder: Path, made: Case, shown: Pictures) -> None:
    service: Any = Drawn(EngineService(["model=tiny"]), folder, lambda request: shown)
    studio = Studio(service, folder, overrides=(), clips=1, long=1, seed=0, sizes=[(160, 96)])
    studio.__dict__["two"] = studio._standard("two", [made])
    two, swapped = kinds.two(studio), kinds.swapped(studio)
    assert two["own_mean"] > 0.95
    assert two["margin"] == pytest.approx(-swapped["margin"], abs=1e-3)
    assert two["motion"] == pytest.approx(1, abs=0.1)
    assert [row["seed"] for row in studio.details["swapped"]] == [made.seed] * 2
    assert liveliness(shown, made) > 0


def test_recordings_are_cut_into_pieces_with_their_envelopes(tmp_path: Path) -> None:
    write_voice(tmp_path / "one.wav", synthetic(0, 4.0).samples)
    write_voice(tmp_path / "nothing.wav", np.zeros(32_000, np.float32))
    pieces = find_pieces(tmp_path, tmp_path / "pieces", frames=40)
    assert [(piece.recording, piece.start, piece.frames) for piece in pieces] == [
        ("one.wav", 0.0, 40),
        ("one.wav", 1.6, 40),
    ]
    whole = synthetic(0, 4.0).opening(1.6 + np.arange(40) / 25)
    assert np.corrcoef(whole, pieces[1].curve.opening(np.arange(40) / 25))[0, 1] > 0.95


@pytest.mark.slow
def test_long_clips_are_resumed_where_an_earlier_run_ended(tmp_path: Path) -> None:
    filmed: list[int] = []

    def drawn(request: Request) -> Pictures:
        filmed.append(request.seed)
        return read_video(next((tmp_path / "cases").rglob(f"{request.seed}-1-*-drawn.mp4")))

    service: Any = Drawn(EngineService(["model=tiny"]), tmp_path, drawn)
    settings: dict[str, Any] = {"clips": 2, "long": 1, "seed": 0, "sizes": [(96, 96)], "long_voice": 2}

    def studio(**more: Any) -> Studio:
        made = Studio(service, tmp_path, overrides=(), details_file=tmp_path / "raw.json", **settings, **more)
        made.take_up({"seed": 0}, resume=True)
        return made

    def cases(self: Studio, _: str, count: int, **__: Any) -> list[Case]:
        return find_cases(0, count, tmp_path / "cases", frames=50, people=1, sizes=self.sizes, speak=synthetic)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Studio, "cases", cases)
        patch.setattr("scripts.evaluate_tiny.long_voices.decode", lambda *_: np.zeros(32_000, np.float32))
        patch.setattr("scripts.evaluate_tiny.films.decode", lambda *_: np.zeros(32_000, np.float32))
        assert long_voices(studio(budget=0), 1)["clips"] == 1
        assert len(filmed) == 1
        assert long_voices(studio(), 1)["clips"] == 2
        assert len(set(filmed)) == len(filmed) == 2
        assert long_voices(studio(), 1)["clips"] == 2
        assert len(filmed) == 2
    with pytest.raises(RequestError, match=r"of another run \(seed\)"):
        Studio(service, tmp_path, overrides=(), details_file=tmp_path / "raw.json", **settings).take_up(
            {"seed": 1}, resume=True
        )


def test_bars_say_what_holds_and_leave_out_what_was_not_measured() -> None:
    judged = check_bars(
        {"one": {"mean": 0.9, "motion": 1.6}, "fps": {"12.5_direct": {"less": 0.05}}, "real": None}, BARS
    )
    assert [(bar["figure"], bar["bar"], bar["holds"]) for bar in judged] == [
        ("one/mean", ">= 0.9", True),
        ("one/motion", "0.5 to 1.5", False),
        ("fps/12.5_direct/less", "<= 0.05", True),
    ]
    assert {bar.path.partition("/")[0] for bar in BARS} <= set(KINDS)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--kinds", "one,tow"], ["--kinds", "'tow'", "two"]),
        (["--kinds", ","], ["--kinds", "no kind"]),
        (["--clips", "0"], ["--clips", "1 or more"]),
        (["--clips", "many"], ["--clips", "many"]),
        (["--seed", "-1"], ["--seed"]),
        (["--sizes", "160"], ["--sizes", "'160'"]),
        (["--voices", "/nowhere"], ["--voices", "/nowhere", "not a folder"]),
        (["--details", "/nowhere/raw.json"], ["--details", "/nowhere/raw.json"]),
        (["--overide", "a=b"], ["did you mean --override"]),
        (["--override", "sampler=eulr"], ["eulr", "euler"]),
    ],
)
def test_wrong_words_are_one_line(words: list[str], parts: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["talk", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert not [part for part in parts if part not in line], line


def test_words_of_the_command_arrive(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    given: dict[str, Any] = {}

    def one(studio: Studio) -> dict[str, Any]:
        given.update(vars(studio))
        return {"clips": 1, "mean": 0.95}

    monkeypatch.setitem(KINDS, "one", one)
    words = "--clips 3 --long 2 --seed 7 --sizes 96x160 --kinds real,one --override cache=none --override video.crf=20"
    assert main(["talk", *words.split()]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["settings"]["overrides"] == ["model=tiny", "cache=none", "video.crf=20"]
    assert report["settings"]["kinds"] == ["one", "real"]
    assert report["real"] is None
    assert report["bars"][0] | {"value": 0} == {
        "name": "one person, correlation",
        "figure": "one/mean",
        "value": 0,
        "bar": ">= 0.9",
        "holds": True,
    }
    assert (given["clips"], given["long"], given["seed"], given["sizes"]) == (3, 2, 7, [(96, 160)])


def test_without_espeak_the_reason_is_told(tmp_path: Path) -> None:
    def mute(*_: Any) -> Any:
        raise FileNotFoundError(2, "No such file or directory", "espeak-ng")

    with pytest.raises(EngineError, match="espeak-ng") as told:
        prepare(0, tmp_path, frames=9, people=1, speak=mute)
    assert "apt-get install espeak-ng" in told.value.hint


def test_a_folder_without_recordings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="has no recordings"):
        talk.run(kinds="real", voices=str(tmp_path))
