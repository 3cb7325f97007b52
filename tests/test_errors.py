"""What a user can get wrong: each is one line that names the input and what would work, and leaves nothing behind."""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import wave
import zlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from full_disk import file_limit
from PIL import Image

from engine.cli.main import main

WEIGHTS = Path(__file__).parent.parent / "engine" / "weights" / "tiny"


def write_png(path: Path, size: tuple[int, int] = (64, 48)) -> None:
    Image.linear_gradient("L").convert("RGB").resize(size).save(path)


def write_wav(path: Path, seconds: float = 0.4) -> None:
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        tone = np.sin(np.arange(round(seconds * 16_000)) * 0.05) * 8000
        file.writeframes(tone.astype("<i2").tobytes())


def write_huge_png(path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    )


def write_silent_film(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(25))
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of good and bad inputs."""
    folder = tmp_path_factory.mktemp("inputs")
    write_png(folder / "ok.png")
    write_wav(folder / "ok.wav")
    (folder / "text.png").write_text("not a picture")
    (folder / "empty.png").touch()
    (folder / "empty.wav").touch()
    (folder / "text.wav").write_text("not a voice " * 100)
    write_wav(folder / "mute.wav", seconds=0)
    write_silent_film(folder / "film.mp4")
    first, second = Image.new("L", (32, 32), 0), Image.new("L", (32, 32), 255)
    first.save(folder / "moving.gif", save_all=True, append_images=[second])
    write_huge_png(folder / "huge.png")
    write_png(folder / "mask.png", (32, 32))
    (folder / "cut.png").write_bytes((folder / "ok.png").read_bytes()[:80])
    voice = f"{{audio: {folder}/ok.wav"
    for name, text in {
        "outside": f"speakers: [{voice}, region: {{box: [70, 0, 90, 48]}}}}]",
        "nan": f"speakers: [{voice}, region: {{box: [0, 0, .nan, 1]}}}}]",
        "turned": f"speakers: [{voice}, region: {{box: [0.9, 0, 0.1, 1]}}}}]",
        "mask": f"speakers: [{voice}, region: {{mask: mask.png}}}}]",
        "broken": "speakers: [{audio: a",
        "unknown": f"speakers: [{voice}, regoin: auto}}]",
        "both": f"speakers: [{voice}, silence: true}}]",
        "two": f"speakers: [{voice}}}, {voice}}}]",
    }.items():
        (folder / f"{name}.yaml").write_text(text)
    shutil.copytree(WEIGHTS, folder / "cut" / "tiny")
    weights = folder / "cut" / "tiny" / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    shutil.copytree(WEIGHTS, folder / "partial" / "tiny")
    (folder / "partial" / "tiny" / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    (folder / "none").mkdir()
    (folder / "full.mp4").write_text("somebody's film")
    return folder


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder; temporary files go to another one, which must be empty at the end."""
    (tmp_path / "tmp").mkdir()
    (tmp_path / "desk").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.chdir(tmp_path / "desk")
    return tmp_path / "desk"


#: Flags of a good request; a case adds words or replaces a flag.
GOOD = {"--image": "@/ok.png", "--audio": "@/ok.wav", "--prompt": "a person talks", "--frames": "5"}

#: Name -> (changed flags, None for one left out; further words; parts of the line that is told).
CASES: dict[str, tuple[dict[str, str | None], list[str], list[str]]] = {
    "no picture": ({"--image": None}, [], ["request.image", "--image"]),
    "picture is not there": ({"--image": "@/gone.png"}, [], ["request.image", "gone.png", "does not exist"]),
    "picture is text": ({"--image": "@/text.png"}, [], ["request.image", "PNG"]),
    "picture is cut off": ({"--image": "@/cut.png"}, [], ["request.image"]),
    "picture is empty": ({"--image": "@/empty.png"}, [], ["request.image", "empty"]),
    "picture is a folder": ({"--image": "@"}, [], ["request.image", "folder"]),
    "picture moves": ({"--image": "@/moving.gif"}, [], ["request.image", "animated"]),
    "picture is huge": ({"--image": "@/huge.png"}, [], ["request.image", "too many pixels"]),
    "picture by a scheme nobody opens": ({"--image": "ftp://a/b.png"}, [], ["request.image", "ftp", "allowed: path"]),
    "no voice": ({"--audio": None}, [], ["request.audio", "--audio"]),
    "voice is not there": ({"--audio": "@/gone.wav"}, [], ["request.speakers[0].audio", "does not exist"]),
    "voice is empty": ({"--audio": "@/empty.wav"}, [], ["request.speakers[0].audio", "0 bytes"]),
    "voice is text": ({"--audio": "@/text.wav"}, [], ["request.speakers[0].audio"]),
    "voice without samples": ({"--audio": "@/mute.wav"}, [], ["request.speakers[0].audio", "sample"]),
    "film without sound": ({"--audio": "@/film.mp4"}, [], ["request.speakers[0].audio", "no audio"]),
    "nobody speaks and no length": ({"--audio": "silence", "--frames": None}, [], ["request.frames", "number"]),
    "three voices for two regions": (
        {},
        ["--audio", "@/ok.wav", "--audio", "@/ok.wav", "--speakers", "@/two.yaml"],
        ["request.speakers", "3 voices", "2 speakers", "next to its region"],
    ),
    "no prompt": ({"--prompt": None}, [], ["request.prompt", "--prompt"]),
    "prompt that is no text": ({"--prompt": "a \udcff b"}, [], ["request.prompt", "UTF-8"]),
    "blank prompt": ({"--prompt": "  "}, [], ["request.prompt", "empty"]),
    "frames are a word": ({"--frames": "abc"}, [], ["request.frames", "'abc'", "whole number"]),
    "no frames": ({"--frames": "0"}, [], ["request.frames", "1 or more"]),
    "rate too high": ({}, ["--fps", "61"], ["request.fps", "1 to 60"]),
    "negative rate": ({}, ["--fps", "-5"], ["request.fps", "from 1 to 60"]),
    "rate is no number": ({}, ["--fps", "nan"], ["request.fps", "from 1 to 60"]),
    "negative seed": ({}, ["--seed", "-2"], ["request.seed", "9223372036854775807"]),
    "seed too large": ({}, ["--seed", str(2**63)], ["request.seed", "9223372036854775807"]),
    "seed is a fraction": ({}, ["--seed", "1.5"], ["request.seed", "Integer"]),
    "audio type misspelt": ({}, ["--audio-type", "parra"], ["request.audio_type", "para or add"]),
    "timing misspelt": ({}, ["--timing", "exact"], ["request.timing", "direct or native"]),
    "fit misspelt": ({}, ["--fit", "stretch"], ["request.fit", "crop or pad"]),
    "box outside the picture": ({"--audio": None}, ["--speakers", "@/outside.yaml"], ["speakers[0].region", "outside"]),
    "box of no number": ({"--audio": None}, ["--speakers", "@/nan.yaml"], ["speakers[0].region.box[2]", "nan"]),
    "box turned round": ({"--audio": None}, ["--speakers", "@/turned.yaml"], ["speakers[0].region.box", "x0 < x1"]),
    "mask of another size": ({"--audio": None}, ["--speakers", "@/mask.yaml"], ["region.mask", "32 x 32", "64 x 48"]),
    "speakers not readable": ({"--audio": None}, ["--speakers", "@/broken.yaml"], ["request.speakers", "line 1"]),
    "speakers not there": ({"--audio": None}, ["--speakers", "@/gone.yaml"], ["request.speakers", "gone.yaml"]),
    "speakers with an unknown key": (
        {"--audio": None},
        ["--speakers", "@/unknown.yaml"],
        ["speakers[0]", "'regoin'", "did you mean region"],
    ),
    "speaker both loud and silent": ({"--audio": None}, ["--speakers", "@/both.yaml"], ["speakers[0]", "both"]),
    "unknown sampler": ({}, ["sampler=eulr"], ["sampler", "'eulr'", "installed: distilled, euler", "unipc"]),
    "unknown model": ({}, ["model=large"], ["model", "'large'", "multitalk"]),
    "unknown quantisation": ({}, ["quant=int5"], ["quant", "'int5'", "int8"]),
    "unknown attention": ({}, ["attention=flsh"], ["attention", "'flsh'", "flash"]),
    "unknown group": ({}, ["smapler=euler"], ["smapler", "sampler"]),
    "unknown key": ({}, ["sampler.stepz=3"], ["sampler.stepz", "sampler.steps"]),
    "key added behind the schema": ({}, ["+sampler.foo=3"], ["sampler.foo", "+"]),
    "sweep without -m": ({}, ["request.seed=1,2"], ["request.seed", "-m"]),
    "group set to nothing": ({}, ["sampler=null"], ["override", "group=name"]),
    "encoder preset misspelt": ({}, ["video.preset=quick"], ["video.preset", "'quick'", "veryfast"]),
    "bitrate of nothing": ({}, ["video.audio_bitrate=1"], ["video.audio_bitrate", "32000"]),
    "cache interval of nothing": ({}, ["cache=taylorseer", "cache.interval=0"], ["cache.interval"]),
    "override with an open bracket": ({}, ["lora.extra=[1"], ["lora.extra=[1", "key=value"]),
    "no steps": ({}, ["sampler.steps=0"], ["sampler.steps", "1 to"]),
    "steps are a word": ({}, ["sampler.steps=many"], ["sampler.steps", "Integer"]),
    "motion frames of a wrong number": ({}, ["continuation.frames=24"], ["continuation.frames", "4n + 1"]),
    "quality out of range": ({}, ["video.crf=99"], ["video.crf", "51"]),
    "resolution of another model": ({}, ["resolution=720p"], ["resolution", "'720p'", "small, large"]),
    "device that does not exist": ({}, ["device=tpu"], ["device", "'tpu'", "cpu"]),
    "type that does not exist": ({}, ["dtype=float8"], ["dtype", "'float8'", "bfloat16"]),
    "attention that this machine has not": ({}, ["attention=flash"], ["attention: attention=flash"]),
    "weights not there": (
        {},
        ["model=multitalk", "source=volume", "source.path=@/none"],
        ["source", "/none/multitalk", "multitalk models pull --preset multitalk-int8 --model-path /"],
    ),
    "weights incomplete": (
        {},
        ["source=volume", "source.path=@/partial"],
        ["source", "vae/diffusion_pytorch_model.safetensors"],
    ),
    "weights cut off": ({}, ["source=volume", "source.path=@/cut"], ["transformer"]),
    "LoRA not there": ({}, ["lora.extra=[{file: nowhere.safetensors}]"], ["lora", "nowhere.safetensors"]),
    "video exists": ({}, ["--output", "@/full.mp4"], ["request.filename", "exists", "sink.overwrite=true"]),
    "output below a file": ({}, ["--output", "@/full.mp4/talk.mp4"], ["sink.folder", "full.mp4"]),
    "output where nobody may write": ({}, ["--output", "/proc/talk.mp4"], ["sink.folder", "/proc"]),
    "output of another kind": ({}, ["--output", "talk.avi"], ["request.filename", ".mp4"]),
    "preview into a folder that is not there": ({}, ["--preview", "gone/who.png"], ["preview", "gone/who.png"]),
    "preview over the picture": ({}, ["--preview", "@/ok.png"], ["preview", "ok.png", "overwritten"]),
    "preview that is no PNG": ({}, ["--preview", "@/full.mp4"], ["preview", "full.mp4", ".png"]),
    "unknown flag": ({}, ["--promt", "x"], ["--promt", "did you mean --prompt"]),
    "a word too much": ({}, ["picture.png"], ["there is no file 'picture.png'", "check the name"]),
    "unknown entrypoint": ({}, ["entrypoint=server"], ["entrypoint"]),
}


def told_once(argv: list[str], desk: Path, inputs: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command line that must fail and return its one line."""
    before = sorted(inputs.rglob("*"))
    status = main([word.replace("@", str(inputs), 1) if "@" in word else word for word in argv])
    told = capsys.readouterr()
    # Warnings of the plan come before the work.
    ahead = ("multitalk:   0%  load", "multitalk: warning: ")
    lines = [line for line in told.err.splitlines() if not line.startswith(ahead)]
    assert status == 2, told.err
    # What else there is to tell is indented below the line.
    assert [line.startswith("multitalk: ") for line in lines] == [True] + [False] * (len(lines) - 1), told.err
    assert all(line.startswith("  ") for line in lines[1:]), told.err
    assert lines[0].startswith("multitalk: error: ")
    assert told.out == ""
    assert list((desk.parent / "tmp").iterdir()) == []
    assert list(desk.iterdir()) == []
    assert sorted(inputs.rglob("*")) == before
    return "\n".join(lines)


@pytest.mark.parametrize("name", CASES)
def test_one_line_names_what_is_wrong_and_what_would_work(
    name: str, desk: Path, inputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed, words, parts = CASES[name]
    flags = {**GOOD, **changed}
    argv = ["generate", *(word for flag, value in flags.items() if value is not None for word in (flag, value)), *words]
    line = told_once(argv, desk, inputs, capsys)
    assert not [part for part in parts if part not in line], line
    assert ";" in line or "\n" in line, f"no hint: {line}"


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["generat"], ["generate"]),
        (["generat"], ["'generat'", "did you mean generate"]),
        (["--verison"], ["--verison", "did you mean --version"]),
        (["plugins", "extra"], ["'extra'"]),
        (["show"], ["FILE.mp4"]),
        (["show", "@/ok.png"], ["no provenance"]),
        (["show", "@/text.wav"], ["text.wav", "cannot be read"]),
        (["again", "@/film.mp4", "--image", "@/ok.png"], ["no provenance"]),
        (["bench", "vae"], ["'vae'"]),
        (["entrypoint=server"], ["entrypoint", "'server'", "generate"]),
    ],
)
def test_other_commands_tell_in_one_line_too(
    argv: list[str], parts: list[str], desk: Path, inputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = told_once(argv, desk, inputs, capsys)
    assert not [part for part in parts if part not in line], line


def good(inputs: Path, *words: str) -> list[str]:
    flags = [word for flag, value in GOOD.items() for word in (flag, value.replace("@", str(inputs)))]
    return ["generate", *flags, "--quiet", "sampler.steps=1", *words]


def test_a_video_that_cannot_grow_is_one_line(desk: Path, inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with file_limit(8192):
        line = told_once(good(inputs), desk, inputs, capsys)
    assert "sink" in line
    assert "File too large" in line


@pytest.fixture
def full_disk(place: str, tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 KiB: a video of a picture that hardly moves is small. Folders of temporary files take as much."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4k" if place == "output" else "size=8k", "none", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk needs root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("place", ["output", "temporary"])
def test_a_full_disk_is_one_line(
    place: str,
    desk: Path,
    inputs: Path,
    full_disk: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["--output", f"{full_disk}/talk.mp4"]
    if place == "temporary":
        monkeypatch.setattr(tempfile, "tempdir", str(full_disk))
        words = []
    line = told_once(good(inputs, *words), desk, inputs, capsys)
    assert "sink" in line
    assert "No space left on device" in line
    assert list(full_disk.iterdir()) == []


def test_a_prompt_with_everything_in_it_makes_a_video(
    desk: Path, inputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompt = 'Zwei Leute, "so" sagt\'s: ${oc.env:HOME} = \\${x} {a: [b]} 一个女人在说话 🎤\n\\'
    assert main([*good(inputs, "--output", "out/talk.mp4", "--json"), "--prompt", prompt]) == 0
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert answer["frames"] == 5
    assert Path(answer["address"]) == desk / "out" / "talk.mp4"
    assert main(["show", answer["address"], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["request"]["prompt"] == prompt
    assert list((desk.parent / "tmp").iterdir()) == []


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("engine.cli.help.manual", broken)
    with pytest.raises(ZeroDivisionError):
        main(["--help"])


def test_a_full_disk_below_stdout_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "engine", "--version"]
        # Not wrapped to the width that pytest runs in.
        plain = {**os.environ, "COLUMNS": ""}
        told = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, env=plain)
    assert (told.returncode, told.stderr.count("\n")) == (2, 1), told.stderr
    assert "No space left on device" in told.stderr


@pytest.mark.slow
def test_closed_stdout_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", None)
    assert main(["plugins"]) == 0


def test_output_in_another_encoding_does_not_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    stdout = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr("sys.stdout", stdout)
    assert main(["plugins"]) == 0
