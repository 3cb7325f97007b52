"""A person's own settings: what holds, where it is said to come from, and what a damaged file says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine.cli.main import main

EXAMPLES = Path(__file__).parents[2] / "engine" / "examples"
REQUEST = [str(EXAMPLES / "one.png"), str(EXAMPLES / "one.flac"), "-p", "x", "-f", "5"]


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of settings."""
    monkeypatch.delenv("MULTITALK_CONFIG", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    folder = tmp_path / "multitalk"
    (folder / "recipes").mkdir(parents=True)
    (folder / "config.yaml").write_text(
        "all:\n  sampler: turbo\n  video: {crf: 20}\ngenerate:\n  sink.folder: 'films (old), new'\n"
    )
    (folder / "recipes" / "mine.yaml").write_text("# Three steps.\nsampler: unipc\nsampler.steps: 3\n")
    return folder


def composed(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main(["config", "--json", *words]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def told(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(list(words)) == 2
    text = capsys.readouterr().err
    assert len(text.splitlines()) == 1, text
    return text


def test_defaults_of_the_file_hold_and_name_their_line(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = composed(capsys)
    assert found["config"]["sampler"]["bundle"] == "turbo"
    assert found["config"]["sink"]["folder"] == "films (old), new"
    assert found["origins"]["video.crf"]["source"] == f"{own / 'config.yaml'}:3"
    assert found["choices"]["sampler"]["source"] == f"{own / 'config.yaml'}:2"
    # Of another command only what is for all.
    assert composed(capsys, "entrypoint=batch")["config"]["sink"]["folder"] != "films (old), new"


def test_arguments_win_over_variables_and_variables_over_the_file(
    own: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MULTITALK_OVERRIDES", "video.crf=30 sampler.steps=7")
    found = composed(capsys, "sampler.steps=2")
    assert (found["config"]["video"]["crf"], found["config"]["sampler"]["steps"]) == (30, 2)
    assert found["origins"]["video.crf"] == {"source": "MULTITALK_OVERRIDES"}
    assert composed(capsys, "--no-config")["config"]["sampler"]["bundle"] == "standard"


@pytest.mark.parametrize("variable", [False, True])
def test_a_recipe_of_ones_own_can_be_chosen_and_wins_over_the_file(
    own: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *, variable: bool
) -> None:
    if variable:
        monkeypatch.setenv("MULTITALK_RECIPE", "mine")
    found = composed(capsys, *([] if variable else ["recipe=mine"]))
    assert (found["config"]["sampler"]["name"], found["config"]["sampler"]["steps"]) == ("unipc", 3)
    assert found["config"]["video"]["crf"] == 20
    assert main(["plugins", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["choices"]
    mine = next(choice for choice in listed if choice["name"] == "mine")
    assert (mine["group"], mine["about"]) == ("recipe", "Three steps.")


def test_a_worker_reads_the_folder_only_if_it_is_told_to(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("entrypoint=runpod", "model=tiny")
    assert composed(capsys, *words)["config"]["sampler"]["bundle"] == "standard"
    assert composed(capsys, *words, "--config", str(own / "config.yaml"))["config"]["sampler"]["bundle"] == "turbo"


def test_a_command_says_which_settings_hold(
    own: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MULTITALK_OVERRIDES", "sampler.steps=3")
    assert main(["plan", *REQUEST]) == 0
    told = capsys.readouterr()
    assert "3 steps" in told.out
    assert "settings of MULTITALK_OVERRIDES: sampler.steps=3" in told.err
    assert f"settings of {own / 'config.yaml'}: sampler=turbo" in told.err
    assert main(["plan", "--quiet", *REQUEST]) == 0
    assert "settings" not in capsys.readouterr().err


def test_a_video_is_the_same_again_without_the_settings_it_was_made_with(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["-o", str(tmp_path / "one.mp4"), "source=packaged", "device=cpu", "-q"]
    assert main(["generate", *REQUEST, "recipe=mine", "sampler=turbo", "sampler.steps=2", *words]) == 0
    (own / "config.yaml").write_text("all: {sampler: unipc, sampler.steps: 9}\n")
    media = ["-i", REQUEST[0], "-a", REQUEST[1], "-o", str(tmp_path / "two.mp4"), "-q"]
    assert main(["again", str(tmp_path / "one.mp4"), *media]) == 0
    assert (tmp_path / "one.mp4").read_bytes() == (tmp_path / "two.mp4").read_bytes()
    assert "settings that are not used, since the video has its own: sampler=unipc" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("all:\n  sampler: [turbo\n", 3, "expected ',' or ']'"),
        ("all:\n  - sampler\n", 1, "'all' is not a table"),
        ("all: {}\ngenrate:\n  sampler: turbo\n", 2, "did you mean generate"),
        ("all:\n  sampler: turbo\n  sampler: unipc\n", 3, "given twice, first in line 2"),
        ("all:\n  video.crf: 2026-01-01\n", 2, "a date is no value"),
        ("generate:\n  entrypoint: batch\n", 2, "cannot be set here"),
        ("sampler\n", 1, "is not a table"),
    ],
)
def test_a_damaged_file_is_one_line_with_its_place(
    own: Path, capsys: pytest.CaptureFixture[str], text: str, line: int, what: str
) -> None:
    (own / "config.yaml").write_text(text)
    said = told(capsys, "plan", *REQUEST)
    assert f"{own / 'config.yaml'}:{line}: " in said
    assert what in said


def test_a_wrong_key_and_a_wrong_value_name_the_line_of_the_file(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for entry in ("sampler.stps: 3", "video.crf: blue"):
        (own / "config.yaml").write_text(f"all:\n  {entry}\n")
        assert main(["plan", "-q", *REQUEST]) == 2
        assert f"({own / 'config.yaml'}:2)" in capsys.readouterr().err


def test_a_damaged_recipe_stops_only_those_who_choose_it(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (own / "recipes" / "bad.yaml").write_text("sampler: {")
    (own / "recipes" / "draft.yaml").write_text("sampler: unipc")
    assert composed(capsys, "recipe=mine")["config"]["sampler"]["steps"] == 3
    assert f"{own / 'recipes' / 'bad.yaml'}:1: " in told(capsys, "plan", *REQUEST, "recipe=bad")
    assert "there is a recipe 'draft' already" in told(capsys, "plan", *REQUEST, "recipe=draft")


def test_a_missing_file_and_both_flags_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "/nowhere/mine.yaml: cannot be read" in told(capsys, "plan", *REQUEST, "-c", "/nowhere/mine.yaml")
    assert "--no-config are both given" in told(capsys, "plan", "-c", "x.yaml", "--no-config")


def test_a_first_file_is_written_once_and_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MULTITALK_CONFIG", raising=False)
    monkeypatch.setenv("MULTITALK_CONFIG_DIR", str(tmp_path / "new"))
    before = composed(capsys)["config"]
    assert main(["config", "init"]) == 0
    path = Path(capsys.readouterr().out.strip())
    assert path == tmp_path / "new" / "config.yaml"
    assert composed(capsys)["config"] == before
    path.write_text(
        path.read_text()
        .replace("{}\n#   ", "\n  ")
        .replace("#   ", "  ")
        .replace("# batch", "batch")
        .replace("# endpoint", "endpoint")
    )
    assert composed(capsys)["config"]["video"]["crf"] == 20
    assert "is there already" in told(capsys, "config", "init")
