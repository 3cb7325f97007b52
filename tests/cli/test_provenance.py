"""`show` and `again`: a video says how it was made, and can be made again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from engine.cli import provenance
from engine.cli.main import main

EXAMPLES = Path(__file__).parents[2] / "engine" / "examples"
PICTURE, LEFT, RIGHT = (str(EXAMPLES / name) for name in ("two.png", "left.flac", "right.flac"))


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of two persons with a box, a mask, a prompt that needs escapes and choices away from the defaults."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("film")
    with Image.open(PICTURE) as picture:
        mask = Image.new("L", picture.size, 0)
    mask.paste(255, (mask.width // 2, 0, mask.width, mask.height))
    mask.save(folder / "right.png")
    speakers = [
        {"audio": f"{LEFT}#channel=1", "region": {"box": [0, 0, 0.5, 1]}, "start": 0.5, "duration": 1, "delay": 0.04},
        {"silence": True, "region": {"mask": str(folder / "right.png")}},
    ]
    words = ["--image", PICTURE, "--speakers", json.dumps({"speakers": speakers}), "--prompt", "a, b='${c}' \\"]
    words += ["--frames", "5", "--seed", "7", "--fps", "12.5", "--negative-prompt", "x, y", "--quiet"]
    words += ["--output", str(folder / "talk.mp4"), "sampler=unipc", "sampler.steps=2", "sampler.shift=2.5"]
    assert main(["generate", *words, "guidance=apg", "cache=teacache", "video.crf=20", "lora.mode=merged"]) == 0
    return folder / "talk.mp4"


def again(film: Path, *words: str) -> int:
    mask = str(film.parent / "right.png")
    return main(["again", str(film), "--quiet", "--output", str(film.parent / "again.mp4"), "--mask", mask, *words])


@pytest.fixture(autouse=True)
def _tidy(film: Path) -> Any:
    yield
    (film.parent / "again.mp4").unlink(missing_ok=True)


def test_provenance_is_read_line_by_line(film: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(film)]) == 0
    rows = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert rows["model"] == "tiny"
    assert rows["request.prompt"] == "a, b='${c}' \\"
    assert rows["request.seed"] == "7"
    assert rows["sampler.name"] == "unipc"
    assert rows["request.speakers[1].silence"] == "true"
    assert rows["request.speakers[0].start"] == "0.5"
    assert rows["request.speakers[0].delay"] == "0.04"
    assert rows["request.speakers[0].channel"] == "1"
    assert "request.speakers[1].start" not in rows


def test_provenance_holds_no_address_of_its_inputs(film: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(film), "--json"]) == 0
    text = capsys.readouterr().out
    for word in (str(EXAMPLES), str(film.parent), "left.flac", "two.png", "right.png"):
        assert word not in text


def test_the_same_media_give_the_same_bytes_and_no_warning(film: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert again(film, "--image", PICTURE, "--audio", LEFT, "--audio", "silence") == 0
    told = capsys.readouterr().err
    assert (film.parent / "again.mp4").read_bytes() == film.read_bytes()
    assert "not the" not in told
    assert " was " not in told


def test_a_video_with_a_window_made_again_is_made_again_with_the_same_bytes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, voice = (str(EXAMPLES / name) for name in ("one.png", "one.flac"))
    first, second = tmp_path / "first.mp4", tmp_path / "second.mp4"
    words = ["--image", one, "--prompt", "a", "--frames", "5", "--quiet", "sampler.steps=1"]
    # No window is ever so sharp.
    limits = ["retake.max=1", "report.sharpness=50", "report.noise=100"]
    assert main(["generate", *words, *limits, "--audio", voice, "--output", str(first)]) == 0
    assert "made again: window 1 (attempt " in capsys.readouterr().err
    assert main(["again", str(first), "--quiet", "--image", one, "--audio", voice, "--output", str(second)]) == 0
    assert second.read_bytes() == first.read_bytes()


def test_a_video_from_before_reports_is_not_judged_when_it_is_made_again(film: Path) -> None:
    kept = provenance.load(film)
    request = provenance._request(kept, [PICTURE], [LEFT], ["mask.png"])
    old = {key: value for key, value in kept.items() if key not in ("report", "retake", "judged")}
    assert "report.enabled=false" in provenance.provenance_overrides(old, request)
    assert "report.enabled=true" in provenance.provenance_overrides(kept, request)


def test_what_differs_is_told(film: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    kept = provenance.load(film)
    changes = {"threads": 77, "device": "cuda", "weights": "0", "versions": {**kept["versions"], "torch": "0.1"}}
    monkeypatch.setattr(provenance, "load", lambda path: {**kept, **changes})
    assert again(film, "--image", str(EXAMPLES / "one.png"), "--audio", RIGHT, "--dry-run") == 0
    told = capsys.readouterr().err
    assert "the voice of speaker 1 is not the one" in told
    assert "one.png is not the picture" in told
    assert "the mask of" not in told
    assert "the weights are not those" in told
    assert "torch was 0.1 and is " in told
    assert "made with 77 threads" in told
    assert "its device was 'cuda'" in told


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--audio", LEFT], "request.image: no picture"),
        (["--image", PICTURE], "request.audio: 0 voices given, the video has 1"),
        (["--image", PICTURE, "--audio", LEFT, "--audio", RIGHT], "request.audio: 2 voices given, the video has 1"),
        (["--image", PICTURE, "--audio", LEFT, "--mask", "b.png"], "request.mask: 2 masks given, the video has 1"),
        (
            ["--image", PICTURE, "--audio", LEFT, "sampler=euler"],
            "'sampler=euler' would change what the provenance says",
        ),
        (["--image", PICTURE, "--audio", LEFT, "--seed", "3"], "unknown flag --seed"),
    ],
)
def test_media_that_do_not_fit_the_provenance_are_named(
    film: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert again(film, *words) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert message in told[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 99}, "provenance of format 99"),
        ({"sampler": None}, "is damaged"),
        ({"request": {}}, "is damaged"),
        ({"guidance": {"name": "cfg", "x=1 hydra": 2}}, "is damaged"),
        ({"model": "${oc.env:HOME}"}, "no model named '${oc.env:HOME}'"),
    ],
)
def test_damaged_provenance_is_one_line(
    film: Path,
    tmp_path: Path,
    change: dict[str, Any],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from engine.stages import write

    damaged = {**write.read_provenance(film), **change}
    monkeypatch.setattr(write, "read_provenance", lambda path: damaged)
    copy = Path(shutil.copy(film, tmp_path / "talk.mp4"))
    status = main(["again", str(copy), "--image", PICTURE, "--audio", LEFT, "--mask", str(film.parent / "right.png")])
    told = capsys.readouterr().err.splitlines()
    assert status == 2
    assert len(told) == 1
    assert message in told[0]
