"""A package of somebody else adds a sampler, a sink and presets for both; nothing of ours is changed for it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "tests" / "support" / "example_plugin"
EXAMPLES = ROOT / "engine" / "examples"


def run(*words: str, cwd: Path) -> str:
    done = subprocess.run(
        words,
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


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
    run(sys.executable, "-m", "venv", "--without-pip", str(place / "venv"), cwd=place)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    shared = sysconfig.get_paths()["purelib"]
    # addsitedir also reads the .pth files there, so an editable install of ours is found.
    pth = place / "venv" / "lib" / version / "site-packages" / "shared.pth"
    pth.write_text(f"import site; site.addsitedir({shared!r})\n")
    shutil.copytree(PACKAGE, place / "source", ignore=shutil.ignore_patterns("__pycache__"))
    interpreter = str(place / "venv" / "bin" / "python")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", interpreter)
    run(*pip, "install", "--quiet", "--no-deps", "--no-build-isolation", str(place / "source"), cwd=place)
    return interpreter


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
    }
    assert not answer["broken"]


def test_a_command_line_uses_both_through_their_presets(python: str, tmp_path: Path) -> None:
    before = ours()
    words = ["--image", str(EXAMPLES / "one.png"), "--audio", str(EXAMPLES / "one.flac"), "--prompt", "a person talks"]
    choices = ["sampler=cosine-draft", "sink=cellar"]
    out = run(python, "-m", "engine", "generate", *words, "--frames", "5", "--json", *choices, cwd=tmp_path)
    answer = json.loads(out.splitlines()[-1])
    (kept,) = (tmp_path / "cellar").iterdir()
    assert answer["address"] == str(kept)
    assert kept.stem == hashlib.sha256(kept.read_bytes()).hexdigest()
    assert answer["plan"]["sampler"].startswith("cosine")
    assert answer["plan"]["steps"] == 3
    assert ours() == before


def test_its_errors_are_told_like_ours(python: str, tmp_path: Path) -> None:
    words = ["--image", str(EXAMPLES / "one.png"), "--audio", str(EXAMPLES / "one.flac"), "--prompt", "a person talks"]
    done = subprocess.run(
        [python, "-m", "engine", "generate", *words, "sink=cellar", "request.filename=talk.mp4"],
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
