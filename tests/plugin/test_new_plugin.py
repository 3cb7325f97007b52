"""`multitalk plugins new`: what it writes is installed, found, used and passes its own test."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from third_party import environment, run

from engine.cli.main import main
from engine.cli.new_plugin import KINDS

EXAMPLES = Path(__file__).parents[2] / "engine" / "examples"


@dataclass(frozen=True)
class Written:
    """A package of each kind, and an environment that has all of them."""

    folders: dict[str, Path]
    python: str


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    place = tmp_path_factory.mktemp("new-plugins")
    folders = {kind: place / f"of-{kind}" for kind in KINDS}
    for kind, folder in folders.items():
        assert main(["plugins", "new", f"acme-{kind}", "--kind", kind, "--folder", str(folder)]) == 0
    return Written(folders, environment(place, list(folders.values())))


@pytest.fixture(scope="module")
def listed(written: Written, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    answer = run(written.python, "-m", "engine", "plugins", "--json", cwd=tmp_path_factory.mktemp("listed"))
    found: dict[str, Any] = json.loads(answer)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_listed_with_its_package(kind: str, listed: dict[str, Any]) -> None:
    assert not listed["broken"]
    (choice,) = [choice for choice in listed["choices"] if choice["package"] == f"acme-{kind}"]
    assert (choice["group"], choice["name"], choice["kind"]) == (kind, f"acme-{kind}", "component")
    assert choice["about"]


@pytest.mark.slow
def test_a_video_is_made_with_one_of_each_kind(written: Written, tmp_path: Path) -> None:
    words = ["--image", str(EXAMPLES / "one.png"), "--audio", str(EXAMPLES / "one.flac"), "--prompt", "a person talks"]
    choices = [f"{kind}=acme-{kind}" for kind in KINDS]
    weights = Path(str(files("engine"))) / "weights"
    choices += [f"source.paths=[{weights}]", "sampler.steps=2", "sampler.power=2"]
    out = run(written.python, "-m", "engine", "generate", *words, "--frames", "5", "--json", *choices, cwd=tmp_path)
    answer = json.loads(out.splitlines()[-1])
    (video,) = (tmp_path / "videos").rglob("*.mp4")
    assert answer["address"] == str(video)
    assert answer["plan"]["sampler"].startswith("acme-sampler")
    assert answer["plan"]["weights"] == str(weights / "tiny")
    assert answer["frames"] == 5


@pytest.mark.slow
def test_its_own_tests_pass(written: Written, tmp_path: Path) -> None:
    tests = [str(folder / f"test_acme_{kind}.py") for kind, folder in written.folders.items()]
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", f"--rootdir={tmp_path}"]
    out = run(written.python, "-m", "pytest", *options, *tests, cwd=tmp_path)
    assert "passed" in out
    assert "skipped" not in out


@pytest.mark.parametrize("kind", KINDS)
def test_what_it_writes_is_formatted_and_checked_like_ours(kind: str, written: Written) -> None:
    config = Path(__file__).parents[2] / "ruff.toml"
    # From within, where its own module is its own and ours is a library.
    for words in (["check", "--ignore", "TC002"], ["format", "--check"]):
        run(sys.executable, "-m", "ruff", *words, "--no-cache", "--config", str(config), ".", cwd=written.folders[kind])


def test_the_package_stands_in_a_folder_of_its_name_and_is_a_sampler_without_other_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["plugins", "new", "acme-cosine"]) == 0
    told = capsys.readouterr()
    assert told.out == "acme-cosine\n"
    assert "sampler=acme-cosine" in told.err
    assert {path.name for path in (tmp_path / "acme-cosine").iterdir()} == {
        "README.md",
        "acme_cosine.py",
        "pyproject.toml",
        "test_acme_cosine.py",
    }


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ([], "NAME is missing"),
        (["acme", "more"], "unexpected 'more'"),
        (["Acme"], "'Acme' cannot be the name of a package"),
        (["../acme"], "'../acme' cannot be the name of a package"),
        (["2fast"], "'2fast' cannot be the name of a package"),
        (["acme-"], "'acme-' cannot be the name of a package"),
        (["class"], "'class' cannot be the name of a package"),
        (["null"], "'null' cannot be the name of a package"),
        (["a" * 65], "cannot be the name of a package"),
        (["euler"], "there is a sampler 'euler' already"),
        (["s3", "--kind", "sink"], "there is a sink 's3' already"),
        (["torch"], "there is a module 'torch' already"),
        (["acme", "--kind", "rocket"], "choose from 'sampler', 'sink', 'reader', 'source', 'attention'"),
        (["acme", "--folder", "."], ". is there already"),
        (["acme", "--folder", "file/acme"], "cannot write file/acme: Not a directory"),
    ],
)
def test_what_cannot_be_written_is_refused_in_one_line(
    words: list[str],
    what: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_bytes(b"")
    assert main(["plugins", "new", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert what in line
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
