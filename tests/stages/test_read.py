"""Requests are checked, fetched within their access and decoded to the plan's size."""

from __future__ import annotations

import dataclasses
import os
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engine.data import Access, Media, Plan, Region, Request, Speaker
from engine.errors import RequestError
from engine.media.audio import voice_spans
from engine.media.canvas import make_canvas, make_seats
from engine.stages.addresses import scheme_of
from engine.stages.read import check_request, fetch, read


def open_paths(address: str, scheme: str, access: Access, into: Path) -> Path | None:
    return Path(address) if scheme == "path" else None


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (96, 64), (200, 40, 60)).save(tmp_path / "a.png")
    for name, seconds in (("a.wav", 0.5), ("b.wav", 0.25)):
        with wave.open(str(tmp_path / name), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(16_000)
            samples = 8000 * np.sin(2 * np.pi * 440 * np.arange(int(seconds * 16_000)) / 16_000)
            file.writeframes(samples.astype("<i2").tobytes())
    return tmp_path


def request(folder: Path, **changes: Any) -> Request:
    given = Request("Two people talk.", str(folder / "a.png"), (Speaker(str(folder / "a.wav")),))
    return dataclasses.replace(given, **changes)


def look(asked: Request, access: Access | None = None) -> Media:
    return fetch(asked, open_paths, access or Access(), Path("/nonexistent"))


@pytest.mark.parametrize(
    ("address", "scheme"),
    [
        ("a.png", "path"),
        ("/x/a:b.png", "path"),
        ("C:\\a.png", "path"),
        ("C:/a.png", "path"),
        ("c://a.png", "path"),
        ("12:30 talk.jpg", "path"),
        ("file:///x/a.png", "path"),
        ("S3://bucket/key", "s3"),
        ("https://host/a.png", "https"),
        ("data:image/png;base64,AAAA", "data"),
        ("Data:,", "data"),
    ],
)
def test_scheme_of_an_address(address: str, scheme: str) -> None:
    assert scheme_of(address) == scheme


Change = dict[str, Any]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"prompt": " \n"}, "request.prompt"),
        ({"speakers": ()}, "request.speakers"),
        ({"speakers": (Speaker(None), Speaker(None))}, "request.frames"),
        ({"frames": 0}, "request.frames"),
        ({"frames": -5}, "request.frames"),
        ({"frames": 2.5}, "request.frames"),
        ({"frames": True}, "request.frames"),
        ({"fps": 0}, "request.fps"),
        ({"fps": 0.99}, "request.fps"),
        ({"frames": "long"}, "request.frames"),
        ({"fps": -1.0}, "request.fps"),
        ({"fps": 121}, "request.fps"),
        ({"fps": float("nan")}, "request.fps"),
        ({"fps": "25"}, "request.fps"),
        ({"seed": -2}, "request.seed"),
        ({"seed": 2**63}, "request.seed"),
        ({"seed": 1.5}, "request.seed"),
        ({"audio_type": "both"}, "request.audio_type"),
        ({"timing": "fast"}, "request.timing"),
        ({"fit": "stretch"}, "request.fit"),
        ({"filename": "x/y.mp4"}, "request.filename"),
        ({"filename": "..\\y.mp4"}, "request.filename"),
        ({"filename": ".mp4"}, "request.filename"),
        ({"filename": ""}, "request.filename"),
        ({"filename": "y\n.mp4"}, "request.filename"),
        ({"filename": "y.avi"}, "request.filename"),
        ({"filename": "ü" * 150 + ".mp4"}, "request.filename"),
        ({"speakers": (Speaker("a"), Speaker("b", Region(box=(5, 0, 4, 9))))}, "request.speakers[1].region.box"),
        ({"speakers": (Speaker("a", Region(box=(0, 0, float("inf"), 9))),)}, "request.speakers[0].region.box"),
        ({"speakers": (Speaker("a", Region(box=(0, 0, 1))),)}, "request.speakers[0].region.box"),  # type: ignore[arg-type]
        ({"speakers": (Speaker("a", Region(box=(0, 0, 1, 1), mask="m")),)}, "request.speakers[0].region"),
    ],
)
def test_wrong_request_names_field_and_what_would_work(tmp_path: Path, change: Change, field: str) -> None:
    with pytest.raises(RequestError) as caught:
        check_request(request(tmp_path, **change))
    assert caught.value.field == field
    assert caught.value.hint


def test_silent_speakers_with_frames_are_a_request(tmp_path: Path) -> None:
    check_request(request(tmp_path, speakers=(Speaker(None),), frames=1, fps=23.976, filename="Über uns.mp4"))


def test_fetch_says_size_and_seconds(folder: Path) -> None:
    Image.new("L", (96, 64), 255).save(folder / "m.png")
    speakers = (
        Speaker(str(folder / "a.wav")),
        Speaker(None, Region(mask=str(folder / "m.png"))),
        Speaker((folder / "b.wav").as_uri()),
    )
    media = look(request(folder, speakers=speakers))

    assert media.image_size == (96, 64)
    assert media.voices == (folder / "a.wav", None, folder / "b.wav")
    assert media.seconds == (0.5, 0.0, 0.25)
    assert media.masks == (None, folder / "m.png", None)


def test_address_named_twice_is_opened_once(folder: Path) -> None:
    asked: list[str] = []

    def count(address: str, scheme: str, access: Access, into: Path) -> Path:
        asked.append(address)
        return Path(address)

    speaker = Speaker(str(folder / "a.wav"))
    fetch(request(folder, speakers=(speaker, speaker)), count, Access(), folder)

    assert sorted(asked) == [str(folder / "a.png"), str(folder / "a.wav")]


Spoil = Callable[[Path], object]


@pytest.mark.parametrize(
    ("spoil", "change", "field", "what"),
    [
        (lambda f: None, {"image": "no.png"}, "request.image", "does not exist"),
        (lambda f: None, {"image": ""}, "request.image", "no address"),
        (lambda f: None, {"image": "a\0b"}, "request.image", "cannot be opened"),
        (lambda f: None, {"image": "x" * 5000}, "request.image", "cannot be opened"),
        (lambda f: None, {"image": "/"}, "request.image", "is a folder"),
        (lambda f: None, {"image": "/dev/null"}, "request.image", "not a regular file"),
        (lambda f: None, {"image": "file://host/a.png"}, "request.image", "another host"),
        (lambda f: None, {"image": "https://host/a.png"}, "request.image", "'https' are not allowed"),
        (lambda f: None, {"speakers": (Speaker("no.wav"),)}, "request.speakers[0].audio", "does not exist"),
        (lambda f: (f / "a.png").write_bytes(b""), {}, "request.image", "empty"),
        (lambda f: (f / "a.png").write_bytes(b"x" * 99), {}, "request.image", "not a picture"),
        (lambda f: (f / "a.wav").write_bytes(b""), {}, "request.speakers[0].audio", "empty"),
        (lambda f: (f / "a.wav").write_bytes(b"RIFF"), {}, "request.speakers[0].audio", "cannot be decoded"),
        (lambda f: (f / "a.wav").write_bytes((f / "a.png").read_bytes()), {}, "request.speakers[0].audio", "no audio"),
    ],
)
def test_unusable_media_name_field_and_reason(
    folder: Path, spoil: Spoil, change: Change, field: str, what: str
) -> None:
    asked = request(folder, **change)
    spoil(folder)

    with pytest.raises(RequestError, match=what) as caught:
        look(asked)
    assert caught.value.field == field
    assert caught.value.hint
    assert len(str(caught.value)) < 500


def test_mask_of_wrong_shape_is_refused(folder: Path) -> None:
    Image.new("L", (64, 96)).save(folder / "m.png")
    speakers = (Speaker(str(folder / "a.wav"), Region(mask=str(folder / "m.png"))),)

    with pytest.raises(RequestError, match="64 x 96 pixels, the picture 96 x 64") as caught:
        look(request(folder, speakers=speakers))
    assert caught.value.field == "request.speakers[0].region.mask"


def test_scheme_outside_access_lists_the_allowed_ones(folder: Path) -> None:
    with pytest.raises(RequestError) as caught:
        look(request(folder), Access(schemes=("data", "https")))
    assert caught.value.field == "request.image"
    assert "data, https" in caught.value.hint
    assert caught.value.code == "scheme_refused"


def test_scheme_that_no_plugin_opens_is_an_error(folder: Path) -> None:
    with pytest.raises(RequestError, match="no installed plugin opens 's3'"):
        look(request(folder, image="s3://b/k"), Access(schemes=("path", "s3")))


@pytest.mark.parametrize("address", ["out/../../a.png", "link.png", "file://{}/a.png"])
def test_path_that_leaves_the_allowed_folders_is_refused(
    folder: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = folder / "inside"
    inside.mkdir()
    (inside / "link.png").symlink_to(folder / "a.png")
    monkeypatch.chdir(inside)

    with pytest.raises(RequestError, match="outside the allowed folders"):
        look(request(folder, image=address.format(folder)), Access(folders=(inside,)))


def test_path_in_an_allowed_folder_behind_a_link_is_opened(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    link = tmp_path_factory.mktemp("links") / "media"
    link.symlink_to(folder)

    media = look(request(folder, image=str(link / "a.png")), Access(folders=(link,)))

    assert media.image == folder / "a.png"


def test_circle_of_links_is_an_error(folder: Path) -> None:
    (folder / "x").symlink_to(folder / "x")

    with pytest.raises(RequestError) as caught:
        look(request(folder, image=str(folder / "x")))
    assert caught.value.field == "request.image"


def test_pipe_is_refused_without_waiting_for_it(folder: Path) -> None:
    os.mkfifo(folder / "pipe")

    with pytest.raises(RequestError, match="not a regular file"):
        look(request(folder, image=str(folder / "pipe")))


@pytest.mark.parametrize(
    ("access", "field", "what"),
    [
        (Access(max_bytes=10), "request.image", "at most 10"),
        (Access(max_pixels=100), "request.image", "96 x 64 pixels"),
        (Access(max_seconds=0.1), "request.speakers[0].audio", "longer than 0.1 seconds"),
    ],
)
def test_limits_of_access_hold(folder: Path, access: Access, field: str, what: str) -> None:
    with pytest.raises(RequestError, match=what) as caught:
        look(request(folder), access)
    assert caught.value.field == field


def test_error_of_a_plugin_gets_the_field_of_the_address(folder: Path) -> None:
    def refuse(address: str, scheme: str, access: Access, into: Path) -> Path:
        raise RequestError("not found", hint="try again", code="download_status")

    with pytest.raises(RequestError) as caught:
        fetch(request(folder), refuse, Access(), folder)
    assert str(caught.value) == "request.image: not found; try again"
    assert caught.value.code == "download_status"


def make_plan(asked: Request, media: Media, seconds: float) -> Plan:
    canvas = make_canvas(media.image_size, (160, 96), asked.fit)
    seats, _ = make_seats(asked.speakers, media, canvas, voice_spans(media.seconds, asked.audio_type))
    frames = round(seconds * 25)
    return Plan(
        *("tiny", "small", False, canvas, seats, frames, 25.0, seconds, "direct", asked.audio_type, frames, 25.0, ()),
        *("euler", 2, "cfg", 1, 2, 42, None),
    )


def test_inputs_have_the_plans_size_and_length(folder: Path) -> None:
    speakers = (Speaker(str(folder / "a.wav")), Speaker(None), Speaker(str(folder / "b.wav")))
    asked = request(folder, speakers=speakers, audio_type="add")
    media = look(asked)

    inputs = read(asked, media, make_plan(asked, media, 1.0))

    assert inputs.image.shape == (96, 160, 3)
    assert inputs.image[50, 50].tolist() == [200, 40, 60]
    assert inputs.masks.shape == (4, 12, 20)
    assert [voice.shape for voice in inputs.voices] == [(16_000,)] * 3
    assert not inputs.voices[1].any()
    assert not inputs.voices[2][:8000].any()
    assert inputs.voices[2][8000:12_000].any()
    assert inputs.sound.shape == (48_000, 2)
    assert not inputs.sound[36_100:].any()
