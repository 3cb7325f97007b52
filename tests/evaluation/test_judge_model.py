"""The judge on a video of the embedded model: good windows are inside all limits, a damaged one outside its own."""

from __future__ import annotations

import wave
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter, map_coordinates, shift

from engine import EngineService, Request, Speaker, hookimpl
from engine.assembly.compose import compose
from engine.assembly.reports import limits_of
from engine.data import Frames, Plan, Report, Window
from engine.evaluation.judge import MEASURES, Judge
from engine.evaluation.likeness import Pictures
from engine.evaluation.mouths import find_mouths
from engine.evaluation.voices import Floats
from engine.media.audio import VOICE_RATE, decode
from engine.media.picture import read_picture
from engine.plugin.manager import installed

EXAMPLES = files("engine") / "examples"
pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Film:
    windows: tuple[Pictures, ...]
    plan: Plan
    voice: Floats
    report: Report


class _Keep:
    """Keeps the frames of each window."""

    def __init__(self) -> None:
        self.windows: list[Pictures] = []

    @hookimpl
    def window_finished(self, window: Window, frames: Frames) -> None:
        assert window.index == len(self.windows)
        self.windows.append(frames.pictures)


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Film:
    """Three windows of one person, who speaks in all of them."""
    folder = tmp_path_factory.mktemp("film")
    voice = np.tile(decode(Path(str(EXAMPLES / "one.flac")), VOICE_RATE, "mono"), 4)
    with wave.open(str(folder / "voice.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(VOICE_RATE)
        file.writeframes((np.clip(voice, -1, 1) * 32767).astype("<i2").tobytes())
    keep, plugins = _Keep(), installed().plugins
    plugins.register(keep)
    service = EngineService(["model=tiny", "source=packaged", "sampler=turbo", f"sink.folder={folder}"])
    speaker = Speaker(str(folder / "voice.wav"))
    try:
        made = service.generate(Request("a person talks", str(EXAMPLES / "one.png"), (speaker,), frames=225))
    finally:
        plugins.unregister(keep)
        service.close()
    assert made.report is not None
    return Film(tuple(keep.windows), made.plan, voice[: 9 * VOICE_RATE], made.report)


def judged(film: Film, windows: list[Pictures], voice: Floats | None = None) -> Report:
    limits = limits_of(compose(["model=tiny"]))
    judge = Judge([film.windows[0][0]], film.plan, [film.voice if voice is None else voice], limits)
    reports = []
    for pictures, window in zip(windows, film.plan.windows, strict=True):
        look = judge.look(pictures, window)
        judge.keep(look)
        reports.append(look.report)
    return judge.report(reports)


def test_a_good_video_is_inside_all_limits_with_every_figure(film: Film) -> None:
    assert film.report.below == ()
    assert film.report.unknown == {}
    assert set(film.report.limits) == set(MEASURES)
    assert all(value is not None for window in film.report.windows[1:] for value in window.figures.values())
    assert film.report.line == ""


def _face(film: Film) -> tuple[slice, slice]:
    (x0, y0, x1, y1) = np.rint(find_mouths(film.windows[0], [film.plan.seats[0].box])[0]).astype(int)
    width, height = x1 - x0, y1 - y0
    return slice(max(0, y0 - round(1.6 * height)), y1 + height // 4), slice(max(0, x0 - width // 3), x1 + width // 3)


def _melted(film: Film, frames: Pictures) -> Pictures:
    here = _face(film)
    result = frames.copy()
    height, width = result[0][here].shape[:2]
    rng = np.random.default_rng(0)
    flow = np.stack([gaussian_filter(rng.normal(size=(height, width)), width / 10) for _ in range(2)])
    places = np.mgrid[:height, :width] + flow * 0.1 * width / flow.std()
    for number, frame in enumerate(frames):
        part = gaussian_filter(frame[here].astype(np.float32), (1.5, 1.5, 0))
        moved = [map_coordinates(part[..., c], places, order=1, mode="nearest") for c in range(3)]
        result[number][here] = np.stack(moved, -1).astype(np.uint8)
    return result


def _exchanged(film: Film, frames: Pictures) -> Pictures:
    """The head of one of the two people of the other example."""
    other = read_picture(Path(str(EXAMPLES / "two.png")), field="request.image")
    height, width = other.shape[:2]
    head = Image.fromarray(other[height // 8 : height * 3 // 4, width // 12 : width * 5 // 12])
    here = _face(film)
    result = frames.copy()
    size = (here[1].stop - here[1].start, here[0].stop - here[0].start)
    result[(slice(None), *here)] = np.asarray(head.resize(size))
    return result


def _shut(film: Film, frames: Pictures) -> Pictures:
    (x0, y0, x1, y1) = np.rint(find_mouths(film.windows[0], [film.plan.seats[0].box])[0]).astype(int)
    result = frames.copy()
    result[:, y0:y1, x0:x1] = film.windows[0][0][y0:y1, x0:x1]
    return result


def _noisy(_: Film, frames: Pictures) -> Pictures:
    noise = 40 * np.random.default_rng(0).normal(size=frames.shape)
    return np.clip(frames + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("damage", "figures"),
    [
        (lambda _, frames: np.stack([gaussian_filter(frame, (1, 1, 0)) for frame in frames]), {"sharpness_kept"}),
        (lambda _, frames: np.stack([gaussian_filter(frame, (2, 2, 0)) for frame in frames]), {"sharpness"}),
        (_noisy, {"sharpness"}),
        (lambda _, frames: np.clip(frames * np.array([1.12, 1.0, 0.88]), 0, 255).astype(np.uint8), {"colour_drift"}),
        (lambda _, frames: np.clip(frames * np.array([1.2, 1.0, 0.8]), 0, 255).astype(np.uint8), {"colour"}),
        (_exchanged, {"identity", "identity_grown"}),
        (_melted, {"identity_grown"}),
        (lambda _, frames: np.repeat(frames[:1], len(frames), 0), {"still", "mouth"}),
        (lambda _, frames: np.zeros_like(frames), {"blank"}),
        (lambda _, frames: np.stack([shift(f, (0, 3, 0), order=0, mode="nearest") for f in frames]), {"seam"}),
        (_shut, {"mouth"}),
    ],
    ids=["blur", "strong blur", "noise", "tint", "colours", "face", "melted", "frozen", "black", "jump", "shut"],
)
def test_damage_of_a_window_is_seen_by_its_figure(
    film: Film, damage: Callable[[Film, Pictures], Pictures], figures: set[str]
) -> None:
    first, second, third = film.windows
    report = judged(film, [first, damage(film, second), third])
    assert set(report.windows[1].below) >= figures, report.windows[1].figures
    assert report.windows[0].below == ()
    assert set(report.windows[2].below) <= {"seam"}


def test_a_voice_that_is_another_is_seen_by_the_mouth(film: Film) -> None:
    other = np.tile(decode(Path(str(EXAMPLES / "right.flac")), VOICE_RATE, "mono"), 4)[: len(film.voice)]
    report = judged(film, list(film.windows), other)
    assert any("mouth" in window.below for window in report.windows), [w.figures["mouth"] for w in report.windows]
