"""The figures of a delivered video, where somebody else than the bench made the picture and the voices."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from engine import EngineService, Request, Speaker
from engine.data import Plan, Window
from engine.evaluation.frames import read_video
from engine.evaluation.mouths import correlation, find_mouths, mouth_openings
from engine.sweeps.measures import measure
from scripts.evaluate_tiny.cases import Case, find_cases, write_film
from scripts.train_tiny.speech import synthetic

FRAMES = 49


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    folder = tmp_path_factory.mktemp("cases")
    return find_cases(7_500_000, 3, folder, frames=FRAMES, people=(2, 1), sizes=((160, 96), (96, 160)), speak=synthetic)


@pytest.fixture(scope="module")
def service() -> EngineService:
    return EngineService(["model=tiny", "source=packaged"])


def asked(case: Case, *, backwards: bool = False) -> Request:
    voices = case.voices[::-1] if backwards else case.voices
    speakers = tuple(Speaker(str(voice)) for voice in voices)
    return Request(case.prompt, str(case.image), speakers, frames=FRAMES, seed=case.seed)


def planned(service: EngineService, request: Request, windows: tuple[Window, ...] = ()) -> Plan:
    plan = service.plan(request)
    return replace(plan, windows=windows) if windows else plan


@pytest.mark.slow
def test_mouths_are_found_without_hearing_a_voice(cases: list[Case]) -> None:
    for case in cases:
        shown = read_video(case.rendered)
        middle = shown.shape[2] // 2
        halves = [(0, 0, middle, shown.shape[1]), (middle, 0, shown.shape[2], shown.shape[1])]
        seats = halves if len(case.voices) == 2 else [(0, 0, shown.shape[2], shown.shape[1])]
        for opening, truth in zip(mouth_openings(shown, find_mouths(shown, seats)), case.openings, strict=True):
            assert correlation(opening[1:], truth[1:]) > 0.85


def test_lips_that_follow_the_own_voice_are_told_from_lips_that_do_not(
    cases: list[Case], service: EngineService
) -> None:
    case = cases[0]
    right, wrong = (
        measure(case.rendered, request, planned(service, request), service)
        for request in (asked(case), asked(case, backwards=True))
    )
    assert right["lip_sync"]["value"] > 0.85
    assert right["lip_lag"]["value"] == 0
    # As far as the two voices open mouths at the same times.
    both = correlation(*case.driving(FRAMES))
    assert wrong["lip_sync"]["value"] == pytest.approx(both, abs=0.15)
    assert wrong["lip_sync"]["value"] < right["lip_sync"]["value"] - 0.2


def test_seams_are_looked_for_where_windows_meet(cases: list[Case], service: EngineService, tmp_path: Path) -> None:
    case = cases[0]
    request = asked(case)
    windows = (Window(0, 0, 25, 0, 25), Window(1, 16, 33, 9, 24))
    told = measure(case.rendered, request, planned(service, request, windows), service)
    differences = np.abs(np.diff(read_video(case.rendered).astype(np.float64), axis=0)).mean((1, 2, 3))
    assert told["seam_ratio"]["value"] == pytest.approx(differences[24] / np.median(differences), abs=1e-3)


@pytest.mark.slow
def test_a_face_that_is_lost_in_a_later_window_misses_its_bars(
    cases: list[Case], service: EngineService, tmp_path: Path
) -> None:
    case = cases[-1]
    request = asked(case)
    windows = (Window(0, 0, 25, 0, 25), Window(1, 16, 33, 9, 24))
    plan = planned(service, request, windows)
    kept = measure(case.rendered, request, plan, service)
    names = ("sharpness_kept", "sharpness", "identity", "identity_grown", "structure_lost", "colour_drift")
    assert [kept[name]["holds"] for name in names] == [True] * 6
    frames = read_video(case.rendered)
    frames[25:] = np.stack([gaussian_filter(frame, (4, 4, 0)) for frame in frames[25:]])
    write_film(tmp_path / "lost.mp4", frames, 25)
    lost = measure(tmp_path / "lost.mp4", request, plan, service)
    assert not any(lost[name]["holds"] for name in ("sharpness_kept", "sharpness", "structure_lost"))
    assert lost["identity"]["value"] > 1.5 * kept["identity"]["value"]
    photographs = measure(case.rendered, request, plan, EngineService(["model=multitalk"]))
    assert "holds" not in photographs["identity"]
    assert photographs["identity"]["value"] > 0


def test_what_does_not_apply_has_a_reason(cases: list[Case], service: EngineService) -> None:
    case = cases[-1]
    request = asked(case)
    plan = planned(service, request)
    short = measure(case.rendered, request, plan, service)
    assert short["seam_ratio"] == {"value": None, "reason": "one window has no seam"}
    assert short["lab_drift"] == {"value": None, "reason": "shorter than two seconds"}
    assert short["sharpness_kept"] == {"value": None, "reason": "there is only one window to compare"}
    assert short["identity"]["value"] is not None
    native = replace(plan, timing="native", windows=plan.windows * 2)
    assert "not shown" in measure(case.rendered, request, native, service)["seam_ratio"]["reason"]
    quiet = replace(plan, seats=tuple(replace(seat, silent=True) for seat in plan.seats))
    assert measure(case.rendered, request, quiet, service)["lip_sync"]["reason"] == "nobody speaks"
    photographs = EngineService(["model=multitalk"])
    assert "drawn people" in measure(case.rendered, request, plan, photographs)["lip_sync"]["reason"]
    elsewhere = measure(None, request, plan, service)
    assert {measure["reason"] for measure in elsewhere.values()} == {"the video is not in this folder"}
