"""A package of somebody else adds a sampler, a sink, a reader, presets and hooks; nothing of ours is changed for it."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import pytest
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
