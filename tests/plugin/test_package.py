"""A package of somebody else adds a sampler, a sink, a reader, presets and hooks; nothing of ours is changed for it."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import av
import pytest
import torch
from safetensors.torch import save_file
from third_party import environment, run

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "tests" / "support" / "example_plugin"
EXAMPLES = ROOT / "engine" / "examples"


def ours() -> dict[str, str]:
    files = [path for folder in ("engine", "plugins", "conf") for path in (ROOT / folder).rglob("*")]
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in [*files, ROOT / "setup.cfg"]
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the interpreter of an environment that has our packages and, installed by pip, the example."""
    place = tmp_path_factory.mktemp("third-party")
    shutil.copytree(PACKAGE, place / "source", ignore=shutil.ignore_patterns("__pycache__"))
    return environment(place, [place / "source"])


def test_its_components_and_presets_are_listed_with_their_package(python: str, tmp_path: Path) -> None:
    answer = json.loads(run(python, "-m", "engine", "plugins", "--json", cwd=tmp_path))
    theirs = {
        (choice["group"], choice["name"], choice["kind"])
        for choice in answer["choices"]
        if choice["package"] == "acme-multitalk"
    }
    assert theirs == {
        ("sampler", "cosine", "component"),
        ("sampler", "cosine-draft", "preset"),
        ("sink", "archive", "component"),
        ("sink", "cellar", "preset"),
        ("reader", "mapped", "component"),
        ("family", "puppet", "component"),
        ("model", "puppet", "preset"),
    }
    assert not answer["broken"]


WORDS = ["--image", str(EXAMPLES / "one.png"), "--audio", str(EXAMPLES / "one.flac"), "--prompt", "a person talks"]


def generate(python: str, folder: Path, *choices: str) -> dict[str, Any]:
    words = [*WORDS, "--frames", "5", "--json", "sampler=cosine-draft", "sink=cellar", *choices]
    out = run(python, "-m", "engine", "generate", *words, cwd=folder)
    answer: dict[str, Any] = json.loads(out.splitlines()[-1])
    return answer


@pytest.fixture(scope="module")
def made(python: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Return a folder and what the command line answered that made a video there with all of the package."""
    folder = tmp_path_factory.mktemp("made")
    before = ours()
    answer = generate(python, folder, "reader=mapped")
    assert ours() == before
    return folder, answer


def test_a_command_line_uses_all_of_it(made: tuple[Path, dict[str, Any]]) -> None:
    folder, answer = made
    (kept,) = (folder / "cellar").iterdir()
    assert answer["address"] == str(kept)
    assert kept.stem == hashlib.sha256(kept.read_bytes()).hexdigest()
    assert answer["plan"]["sampler"].startswith("cosine")
    assert answer["plan"]["steps"] == 3
    with av.open(str(kept)) as video:
        corner = next(video.decode(video=0)).to_ndarray(format="rgb24")[:4, :4]
    # Its hook made it white; the encoding is not exact.
    assert corner.min() > 220


def test_its_reader_loads_the_same_weights_as_ours(
    python: str, made: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    # One seed, so the bytes of the video are the same if the weights are.
    answer = generate(python, tmp_path, "reader=ahead", "reader.mapped=false")
    assert answer["sha256"] == made[1]["sha256"]


def test_a_mistyped_key_is_compared_with_those_of_its_components(python: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [python, "-m", "engine", "plan", *WORDS, "sink=archive", "sink.foldr=films"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 2
    assert "did you mean sink.folder?" in done.stderr


@pytest.fixture(scope="module")
def puppet(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return the overrides of the package's own model family, whose one weight is written here."""
    root = tmp_path_factory.mktemp("models")
    (root / "puppet").mkdir()
    save_file({"strength": torch.full((1,), 0.8)}, root / "puppet" / "puppet.safetensors")
    return ["model=puppet", "source=volume", f"source.path={root}", "sampler.steps=2"]


@pytest.mark.slow
def test_its_family_makes_a_video_from_the_command_line_the_worker_and_python(
    python: str, puppet: list[str], tmp_path: Path
) -> None:
    words = [*WORDS, "--frames", "17", "--json", *puppet]
    out = run(python, "-m", "engine", "generate", *words, "--output", "talk.mp4", cwd=tmp_path)
    answer = json.loads(out.splitlines()[-1])
    assert answer["frames"] == 17
    assert [window["frames"] for window in answer["plan"]["windows"]] == [9, 9]
    assert answer["forwards"] == 4
    with av.open(str(tmp_path / "talk.mp4")) as video:
        pictures = [frame.to_ndarray(format="gray").astype(float) for frame in video.decode(video=0)]
    # Its mouth is the whole region of the speaker.
    loudness = [float(picture.mean()) for picture in pictures]
    assert max(loudness) - min(loudness) > 10

    encoded = {name: base64.b64encode((EXAMPLES / name).read_bytes()).decode() for name in ("one.png", "one.flac")}
    job = {"reference_image": encoded["one.png"], "audio_1": encoded["one.flac"], "prompt": "a person talks"}
    words = ["--test-input", json.dumps({"input": job | {"num_frames": 17, "fps": 25}}), "sink=base64", *puppet]
    printed = run(python, "-m", "engine", "runpod", *words, cwd=tmp_path)
    (line,) = [line for line in printed.splitlines() if line.startswith('{"video_base64"')]
    assert base64.b64decode(json.loads(line)["video_base64"])[4:8] == b"ftyp"

    code = f"""
        from engine import EngineService, Request, Speaker
        service = EngineService({[*puppet, "sink=base64"]!r})
        speaker = Speaker({str(EXAMPLES / "one.flac")!r})
        request = Request("a person talks", {str(EXAMPLES / "one.png")!r}, (speaker,), frames=17)
        print(service.generate(request).sha256)
    """
    assert run(python, "-c", textwrap.dedent(code), cwd=tmp_path).strip() == answer["sha256"]


def test_what_its_family_cannot_do_is_refused_by_name(python: str, puppet: list[str], tmp_path: Path) -> None:
    assert failure(python, tmp_path, *puppet, "cache=easycache") == (
        "multitalk: error: cache: cache=easycache does not work with model=puppet: its network is one layer; "
        "leave cache out, or choose another model"
    )


def test_a_preset_whose_family_is_not_installed_is_refused(python: str, puppet: list[str], tmp_path: Path) -> None:
    told = failure(python, tmp_path, *puppet, MULTITALK_DISABLED_PLUGINS="acme-puppet")
    assert "puppet" in told
    assert told.startswith("multitalk: error: family")


def test_without_the_folder_of_a_family_all_else_works(python: str, puppet: list[str], tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    for name in ("engine", "plugins"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "weights"))
    shutil.rmtree(copy / "plugins" / "families" / "multitalk")
    words = [*WORDS, "--frames", "5", "--json", "--output", str(tmp_path / "talk.mp4"), *puppet]
    done = asked(python, tmp_path, "generate", *words, PYTHONPATH=str(copy))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["frames"] == 5
    told = asked(python, tmp_path, "plan", *WORDS, PYTHONPATH=str(copy)).stderr.splitlines()[-1]
    assert told.startswith("multitalk: error: family: no family named 'multitalk'")
    # The plugin is named whose files are gone.
    assert "multitalk-family-multitalk" in told


def asked(python: str, folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line; its status and what it prints are the result."""
    return subprocess.run(
        [python, "-m", "engine", *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env=os.environ | environment,
    )


def failure(python: str, folder: Path, *choices: str, **environment: str) -> str:
    """Return the last line of a plan that is refused."""
    done = asked(python, folder, "plan", *WORDS, *choices, **environment)
    assert done.returncode == 2
    return done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_its_errors_are_told_like_ours(python: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [python, "-m", "engine", "generate", *WORDS, "sink=cellar", "request.filename=talk.mp4"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "multitalk: error: request.filename: an archive names its videos itself; leave it out"
    )
    assert not list(tmp_path.iterdir())


def test_it_is_not_installed_here() -> None:
    # Otherwise the tests above would show nothing.
    done = subprocess.run([sys.executable, "-c", "import acme_multitalk"], capture_output=True, check=False, cwd="/")
    assert done.returncode != 0
