"""Reports and retakes of the whole walk on the embedded model: what is answered, stored, and made again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine import Delivery, EngineService, Progress, Request, Speaker
from engine.data import Frames, Window
from engine.errors import ConfigError, EngineError
from engine.evaluation.frames import read_video
from engine.stages.decode import Decoded, decode
from engine.stages.write import read_provenance
from plugins.families.multitalk import model as family

EXAMPLES = files("engine") / "examples"
#: Three windows of 9, 4 and 4 new frames. With two steps their pictures are poor, so only black frames count.
OFF = tuple(
    f"report.{name}=null"
    for name in ("seam", "sharpness", "noise", "sharpness_kept", "colour", "colour_drift", "still", "mouth")
)
ONE = Request(
    prompt="A person talks.",
    image=str(EXAMPLES / "one.png"),
    speakers=(Speaker(str(EXAMPLES / "one.flac")),),
    frames=17,
)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineService]:
    folder = tmp_path_factory.mktemp("videos")
    short = ("model.window=9", "continuation.frames=5", "sampler=turbo", "sampler.steps=2", "sink.overwrite=true")
    service = EngineService([f"sink.folder={folder}", *short, *OFF])
    yield service
    service.close()


def asked(*overrides: str) -> Request:
    return replace(ONE, overrides=overrides)


def digest(delivery: Delivery) -> str:
    assert delivery.address is not None
    return hashlib.sha256(Path(delivery.address).read_bytes()).hexdigest()


class Spoiler:
    """Blackens the frames of some windows in some of their attempts, or breaks them, after real decoding."""

    def __init__(self, faults: dict[int, list[int | str]]) -> None:
        """`faults` are, by the window's index, the black frames of each attempt, or the text of an error."""
        self._faults = {index: list(each) for index, each in faults.items()}
        self.decoded: list[int] = []

    def __call__(self, model: Any, latents: Any, window: Window, *rest: Any, **named: Any) -> Decoded:
        self.decoded.append(window.index)
        frames, history = self._real(model, latents, window, *rest, **named)
        left = self._faults.get(window.index, [])
        fault = left.pop(0) if left else 0
        if isinstance(fault, str):
            raise EngineError(fault, code="broken_window")
        pictures = frames.pictures.copy()
        pictures[:fault] = 0
        return Decoded(Frames(pictures, frames.fps), history)

    _real = staticmethod(decode)


@pytest.fixture
def spoilt(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[int, list[int | str]]], Spoiler]:
    def spoil(faults: dict[int, list[int | str]]) -> Spoiler:
        spoiler = Spoiler(faults)
        monkeypatch.setattr(family, "decode", spoiler)
        return spoiler

    return spoil


def test_every_window_is_in_the_report_and_in_the_file(service: EngineService) -> None:
    delivery = service.generate(asked())
    report = delivery.report
    assert report is not None
    assert [window.window for window in report.windows] == [1, 2, 3]
    assert [(window.start, window.end) for window in report.windows] == [(0.0, 0.36), (0.36, 0.52), (0.52, 0.68)]
    assert report.below == ()
    assert [window.figures["blank"] for window in report.windows] == [0, 0, 0]
    assert report.seconds > 0
    assert delivery.address is not None
    judged = read_provenance(Path(delivery.address))["judged"]
    assert judged["windows"] == 3
    assert judged["figures"] == {"blank": [0, 0, 0]}
    assert "nobody" not in judged["unknown"]["seam"]


def test_a_spoilt_window_is_named(service: EngineService, spoilt: Callable[..., Spoiler]) -> None:
    spoilt({1: [3]})
    report = service.generate(asked()).report
    assert report is not None
    assert report.below == (2,)
    assert report.line == "1 of 3 windows outside the limits: window 2 (blank 3, at most 0)"


def test_a_spoilt_window_is_made_again_and_the_windows_before_it_stay(
    service: EngineService, spoilt: Callable[..., Spoiler]
) -> None:
    good = service.generate(asked())
    spoiler = spoilt({1: [3, 1, 0]})
    seen: list[Progress] = []
    delivery = service.generate(asked("retake.max=3"), progress=seen.append)
    report = delivery.report
    assert report is not None
    assert spoiler.decoded == [0, 1, 1, 1, 2]
    assert (report.below, report.retaken) == ((), (2,))
    attempts = report.windows[1].attempts
    assert [(one.badness, one.kept) for one in attempts] == [(3, False), (1, False), (0, True)]
    assert delivery.plan.most_forwards == 4 * delivery.plan.forwards
    assert delivery.forwards == delivery.plan.forwards * 5 // 3
    fractions = [progress.fraction for progress in seen]
    assert fractions == sorted(fractions)
    assert fractions[-1] == pytest.approx(1)
    # A window that is made again is announced as what it is: its own number, once more from the first step.
    steps = [(progress.window, progress.step) for progress in seen if progress.stage == "denoise" and progress.step]
    assert steps == [(1, 1), (1, 2), *[(2, 1), (2, 2)] * 3, (3, 1), (3, 2)]
    assert good.report is not None
    assert good.report.windows[0] == report.windows[0]


@pytest.mark.slow
def test_the_same_request_makes_the_same_retakes_and_bytes(
    service: EngineService, spoilt: Callable[..., Spoiler]
) -> None:
    made = []
    for _ in range(2):
        spoilt({1: [3, 1, 0], 2: [1]})
        made.append(service.generate(asked("retake.max=2")))
    assert digest(made[0]) == digest(made[1])
    seeds = [
        [one.seed for window in delivery.report.windows for one in window.attempts]
        for delivery in made
        if delivery.report
    ]
    assert seeds[0] == seeds[1]
    assert len(set(seeds[0])) == 4


def test_the_best_attempt_is_in_the_video_if_none_is_good(
    service: EngineService, spoilt: Callable[..., Spoiler]
) -> None:
    spoilt({0: [9, 2, 4]})
    report = service.generate(asked("retake.max=2")).report
    assert report is not None
    assert report.windows[0].figures["blank"] == 2
    assert [one.kept for one in report.windows[0].attempts] == [False, True, False]


def test_a_broken_window_is_made_again_only_with_retakes(
    service: EngineService, spoilt: Callable[..., Spoiler]
) -> None:
    spoilt({1: ["window 2 contains values that are not finite after sampling"]})
    with pytest.raises(EngineError, match="not finite"):
        service.generate(asked())
    spoilt({1: ["window 2 contains values that are not finite after sampling"]})
    report = service.generate(asked("retake.max=1")).report
    assert report is not None
    assert report.windows[1].attempts[0].badness is None
    assert report.below == ()


@pytest.mark.slow
def test_retakes_that_are_not_needed_change_no_picture(service: EngineService) -> None:
    pictures = []
    for overrides in ((), ("retake.max=3",), ("report.enabled=false",)):
        delivery = service.generate(asked(*overrides))
        assert delivery.address is not None
        pictures.append(read_video(Path(delivery.address)))
    assert np.array_equal(pictures[0], pictures[1])
    assert np.array_equal(pictures[0], pictures[2])


def test_a_video_that_is_not_judged_has_no_report(service: EngineService) -> None:
    delivery = service.generate(asked("report.enabled=false"))
    assert delivery.report is None
    assert delivery.address is not None
    assert "judged" not in read_provenance(Path(delivery.address))


def test_windows_that_are_not_judged_cannot_be_made_again(service: EngineService) -> None:
    with pytest.raises(ConfigError, match="not judged") as caught:
        service.generate(asked("report.enabled=false", "retake.max=1"))
    assert caught.value.field == "retake.max"


@pytest.mark.slow
def test_the_file_stores_the_limits_that_decided_a_retake(
    service: EngineService, spoilt: Callable[..., Spoiler]
) -> None:
    spoilt({1: [3, 0]})
    delivery = service.generate(asked("retake.max=1", "report.blank=1"))
    assert delivery.address is not None
    provenance = read_provenance(Path(delivery.address))
    assert provenance["retake"] == {"max": 1}
    assert provenance["report"]["blank"] == 1
    assert provenance["judged"]["badness_of_attempts"] == {"2": [2, 0]}
