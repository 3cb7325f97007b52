"""Prompts, pictures and cuts over time on the embedded model: what changes, where, and nothing before."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageEnhance

from engine import Cue, Delivery, EngineService, Request, Speaker, hookimpl
from engine.assembly.compose import compose
from engine.cli.main import main
from engine.cli.provenance import _request as request_of
from engine.cli.provenance import differences, load, provenance_overrides
from engine.cli.provenance_check import check_form
from engine.data import Frames, Window
from engine.errors import ConfigError, RequestError
from engine.plugin.manager import installed
from engine.stages.write import read_provenance
from plugins.entrypoints.generate import make_request

EXAMPLES = files("engine") / "examples"
ONE, VOICE = str(EXAMPLES / "one.png"), str(EXAMPLES / "one.flac")
SAD, HAPPY = "A person talks in a park, sad and gloomy.", "A person talks in a park, happy and smiling."
#: Windows of 13 frames, of which 9 are new in the second: frames 0 to 12, and 13 to 20.
BOOT = ["model.window=13", "continuation.frames=5", "sampler=turbo", "sampler.steps=3", "sink.overwrite=true"]
BASE = Request(SAD, ONE, (Speaker(VOICE),), frames=21, filename="talk.mp4")
#: The first frame of the second window.
CUT = 13


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineService]:
    service = EngineService([*BOOT, f"sink.folder={tmp_path_factory.mktemp('videos')}"])
    yield service
    service.close()


class _Pictures:
    """Collects the frames of each window before they are encoded."""

    def __init__(self) -> None:
        self.windows: list[npt.NDArray[np.uint8]] = []

    @hookimpl
    def window_finished(self, request: Request, window: Window, frames: Frames) -> None:
        self.windows.append(frames.pictures.copy())


def make(service: EngineService, request: Request) -> tuple[npt.NDArray[np.int16], Delivery]:
    pictures = _Pictures()
    plugins = installed().plugins
    name = plugins.register(pictures)
    try:
        delivery = service.generate(request)
    finally:
        plugins.unregister(name=name)
    return np.concatenate(pictures.windows).astype(np.int16), delivery


@pytest.fixture(scope="module")
def sad(service: EngineService) -> npt.NDArray[np.int16]:
    return make(service, BASE)[0]


def timeline(*cues: Cue, **changes: Any) -> Request:
    return replace(BASE, prompt="", prompts=cues, **changes)


def test_a_mood_changes_with_its_window_and_not_before(service: EngineService, sad: npt.NDArray[np.int16]) -> None:
    changed, delivery = make(service, timeline(Cue(SAD, 0), Cue(HAPPY, 0.5)))
    happy, _ = make(service, replace(BASE, prompt=HAPPY))

    assert np.array_equal(changed[:CUT], sad[:CUT])
    assert all((one != other).any() for one, other in zip(changed[CUT:], sad[CUT:], strict=True))
    # The change goes towards a video that is happy from the start.
    to_happy, way = (changed - sad)[CUT:].ravel().astype(float), (happy - sad)[CUT:].ravel().astype(float)
    assert to_happy @ way / (np.linalg.norm(to_happy) * np.linalg.norm(way)) > 0.3
    assert "prompts[1]: from 0.5 s becomes window 2, 0.52 s, because a window has one prompt" in delivery.warnings


@pytest.mark.slow
def test_a_timeline_of_the_same_text_makes_the_same_video(service: EngineService, sad: npt.NDArray[np.int16]) -> None:
    assert np.array_equal(make(service, timeline(Cue(SAD, 0), Cue(SAD, frame=CUT)))[0], sad)


@pytest.mark.slow
def test_step_caches_work_with_a_timeline(service: EngineService) -> None:
    cached = ("cache=magcache", "cache.warmup=1", "cache.skips=1", "cache.threshold=100")
    alone, one = make(service, replace(BASE, overrides=cached))
    changed, two = make(service, timeline(Cue(SAD, 0), Cue(HAPPY, frame=CUT), overrides=cached))

    assert one.forwards == two.forwards
    assert (two.forwards or 0) < two.plan.forwards
    assert np.array_equal(changed[:CUT], alone[:CUT])
    assert (changed[CUT:] != alone[CUT:]).any()


@pytest.mark.slow
def test_each_text_is_encoded_once_and_known_the_next_time(service: EngineService) -> None:
    model: Any = service.engine.load().model
    encoder = model.text
    encoded: list[str] = []
    usual = encoder.encode
    request = timeline(Cue("One.", 0), Cue("Two.", frame=CUT), Cue("One.", frame=21), frames=29)

    def encode(text: str) -> Any:
        encoded.append(text)
        return usual(text)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder, "encode", encode)
        first, second = service.generate(request), service.generate(request)

    assert encoded == ["One.", "Two."]
    assert (first.prompts_reused, second.prompts_reused) == (False, True)
    assert [cue.window for cue in first.plan.prompts] == [0, 1, 2]
    assert not [text for text in first.warnings if "becomes window" in text]


def test_each_text_that_is_too_long_is_told(service: EngineService) -> None:
    words = "a person talks in a park, " * 20
    warnings = service.plan(timeline(Cue(SAD, 0), Cue(words, frame=CUT))).warnings
    assert [text.partition(" is longer")[0] for text in warnings if "is longer" in text] == ["the prompts[1]"]


@pytest.fixture(scope="module")
def dark(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same picture, darker and of another size."""
    path = tmp_path_factory.mktemp("pictures") / "dark.png"
    with Image.open(ONE) as picture:
        smaller = picture.convert("RGB").resize((picture.width // 2, picture.height // 2))
        ImageEnhance.Brightness(smaller).enhance(0.5).save(path)
    return str(path)


def test_a_picture_changes_with_its_window_and_not_before(
    service: EngineService, sad: npt.NDArray[np.int16], dark: str
) -> None:
    images = (Cue(ONE, 0), Cue(dark, frame=CUT))
    changed, delivery = make(service, replace(BASE, image="", images=images))

    assert np.array_equal(changed[:CUT], sad[:CUT])
    # Colours follow the window's picture.
    assert changed[CUT + 2 :].mean() < 0.75 * sad[CUT + 2 :].mean()
    assert [cue.window for cue in delivery.plan.images] == [0, 1]
    assert delivery.plan.canvases[0].target == delivery.plan.canvas.target


@pytest.mark.slow
def test_a_picture_that_comes_back_is_encoded_again_and_the_same(service: EngineService, dark: str) -> None:
    images = (Cue(ONE, 0), Cue(dark, frame=CUT), Cue(ONE, frame=CUT + 8))
    changed, _ = make(service, replace(BASE, image="", images=images, frames=29))
    assert changed[CUT + 2 : CUT + 8].mean() < 0.75 * changed[:CUT].mean()
    # Its window continues from dark frames.
    assert changed[CUT + 10 :].mean() > 1.1 * changed[CUT + 2 : CUT + 8].mean()


def test_pictures_by_time_are_refused_for_windows_that_do_not_see_them(service: EngineService, dark: str) -> None:
    request = replace(
        BASE, image="", images=(Cue(ONE, 0), Cue(dark, frame=CUT)), overrides=("continuation.style=multitalk",)
    )
    with pytest.raises(RequestError, match="several pictures need windows that see the picture"):
        service.plan(request)


def test_a_picture_that_cannot_be_read_is_named_by_its_entry(service: EngineService, tmp_path: Path) -> None:
    (tmp_path / "no.png").write_bytes(b"no picture")
    request = replace(BASE, image="", images=(Cue(ONE, 0), Cue(str(tmp_path / "no.png"), frame=CUT)))
    with pytest.raises(RequestError) as caught:
        service.plan(request)
    assert caught.value.field == "request.images[1].image"


def test_windows_meet_in_a_pause_and_the_answer_says_where(service: EngineService) -> None:
    request = replace(BASE, overrides=("windows=pauses",))
    planned, delivery = service.plan(request), make(service, request)[1]

    assert delivery.plan.windows == planned.windows
    assert delivery.plan.seams == planned.seams
    assert planned.seams is not None
    assert len(planned.seams.seams) == len(planned.windows) - 1
    assert sum(window.keep for window in planned.windows) == 21
    assert delivery.address is not None
    assert read_provenance(Path(delivery.address))["windows"] == "pauses"


def test_cuts_in_pauses_are_refused_for_a_model_of_whole_windows() -> None:
    service = EngineService([*BOOT, "windows=pauses", "model.whole_windows=true"])
    with pytest.raises(ConfigError, match="makes only whole ones") as caught:
        service.plan(BASE)
    assert caught.value.field == "windows"


def test_a_video_with_timelines_is_made_again_from_its_provenance(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "first.mp4", tmp_path / "again.mp4"
    words = ["--image-at", "0f", ONE, "--audio", VOICE, "--frames", "5", "--quiet", "sampler.steps=1"]
    text = f"-{HAPPY}, '${{x}}'"
    assert main(["generate", *words, "--prompt-at", "0", text, "windows=pauses", "--output", str(first)]) == 0
    provenance = read_provenance(first)
    assert provenance["request"]["prompts"] == [{"from": 0.0, "text": text}]
    assert provenance["request"]["images"] == [{"from_frame": 0}]
    capsys.readouterr()

    media = ["--image", ONE, "--audio", VOICE, "--quiet", "--output", str(second)]
    assert main(["again", str(first), *media]) == 0
    assert second.read_bytes() == first.read_bytes()
    assert "not the" not in capsys.readouterr().err


def test_entries_of_provenance_become_the_same_request_and_each_picture_is_compared(
    service: EngineService, dark: str, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = (Cue(SAD, 0.0), Cue(f"a, '${{b}}' {HAPPY}", frame=CUT))
    asked = replace(BASE, prompt="", prompts=prompts, image="", images=(Cue(ONE, 0.0), Cue(dark, 0.5)))
    made = service.generate(asked)
    assert made.address is not None
    stored = load(Path(made.address))
    check_form(stored)
    request = request_of(stored, [ONE, dark], [VOICE], [])
    assert replace(request, filename=asked.filename) == replace(asked, negative_prompt=request.negative_prompt)
    overrides = ["entrypoint=generate", *BOOT, *provenance_overrides(stored, request)]
    again = make_request(compose(overrides).request)
    assert (again.prompts, again.images, again.prompt, again.image) == (asked.prompts, asked.images, "", "")
    swapped = differences(stored, overrides, request_of(stored, [dark, ONE], [VOICE], []))
    assert sum("is not the picture that the video was made from" in line for line in swapped) == 2
    with pytest.raises(RequestError, match="1 pictures given, the video has 2"):
        request_of(stored, [ONE], [VOICE], [])


@pytest.mark.parametrize(
    "change",
    [
        {"prompts": [{"from": 0, "text": 5}]},
        {"prompts": [{"text": "a"}]},
        {"prompts": "abc"},
        {"images": [{"from": 0, "image": "/etc/passwd"}]},
        {"images": [{"from": 0}, {"from": 1}]},
    ],
)
def test_damaged_entries_of_provenance_are_refused(
    service: EngineService, change: dict[str, Any], tmp_path: Path
) -> None:
    made = service.generate(replace(BASE, frames=5, filename="damaged.mp4"))
    assert made.address is not None
    stored = load(Path(made.address))
    with pytest.raises(ValueError, match=r"(request|inputs)\."):
        check_form({**stored, "request": {**stored["request"], **change}})


def test_the_command_line_shows_where_prompts_and_windows_begin(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prompts.yaml").write_text(f"prompts:\n- {{from: 0, text: '{SAD}'}}\n- {{from: 0.5, text: happy}}\n")
    words = ["--image", ONE, "--audio", VOICE, "--prompts", str(tmp_path / "prompts.yaml"), *BOOT[:4]]
    assert main(["plan", *words, "--frames", "21"]) == 0
    shown = capsys.readouterr().out
    assert "prompts   1: from 0.00 s, window 1\n" in shown
    assert "2: from 0.5 s becomes window 2, 0.52 s" in shown
    assert main(["plan", *words, "windows=pauses", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["seams"]["windows"] == len(plan["windows"])
    assert {"window", "seconds", "level", "pause"} == set(plan["seams"]["seams"][0])
    assert main(["plan", *words, "windows=pauses"]) == 0
    shown = capsys.readouterr().out
    assert "begins at 0.52 s in speech, no pause within reach" in shown
    assert (
        "windows=pauses: 0 of 7 cuts in pauses; 8 windows with 104 frames are computed; windows=fixed: 0 of 7" in shown
    )
