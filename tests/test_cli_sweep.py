"""Sweeps: every combination becomes a video of its own, and only the overview is left beside them."""

from __future__ import annotations

import functools
import json
import pickle
from pathlib import Path

import pytest

from engine.cli import main
from engine.commands.launch import run_job

EXAMPLES = Path(__file__).parent.parent / "engine" / "examples"
WORDS = ["generate", "--image", str(EXAMPLES / "one.png"), "--audio", str(EXAMPLES / "one.flac"), "--frames", "1"]
PROMPT = "one, two='${x}' \\"


@pytest.fixture(autouse=True)
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_combination_is_a_video_of_its_own(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--prompt", PROMPT, "--quiet", "--output", "films/talk.mp4", "sampler.steps=1"]
    assert main([*WORDS, *words, "-m", "sampler=standard,turbo", "request.seed=1,2"]) == 0
    told = capsys.readouterr()
    films = [desk / "films" / f"talk-{number}.mp4" for number in range(4)]
    assert told.out.splitlines() == [str(film) for film in films]
    assert "multitalk: job 2: sampler=turbo, request.seed=1" in told.err
    recipes = []
    for film in films:
        main(["show", str(film), "--json"])
        recipes.append(json.loads(capsys.readouterr().out))
    made = [(recipe["sampler"]["bundle"], recipe["request"]["seed"]) for recipe in recipes]
    assert made == [("standard", 1), ("standard", 2), ("turbo", 1), ("turbo", 2)]
    assert {recipe["request"]["prompt"] for recipe in recipes} == {PROMPT}
    left = [path.name for path in desk.rglob("*") if path.is_file() and path.suffix != ".mp4"]
    assert left == ["multirun.yaml"]
    assert {path.name for path in desk.iterdir()} == {"films", "sweeps"}


def test_a_job_that_cannot_be_made_lets_the_others_go_on(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--prompt", "x", "--quiet", "--output", "talk.mp4", "sampler.steps=1"]
    assert main([*WORDS, *words, "-m", "request.fps=-1,25"]) == 2
    told = capsys.readouterr()
    assert told.out.splitlines() == [str(desk / "talk-1.mp4")]
    errors = [line for line in told.err.splitlines() if "error" in line]
    assert len(errors) == 1
    assert errors[0].startswith("multitalk: error: job 0: request.fps: ")


@pytest.mark.parametrize("word", ["sampler=standard,eulr", "sampler.stepz=1,2", "request.frames=1,abc"])
def test_a_combination_that_does_not_compose_stops_the_sweep_in_one_line(
    word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*WORDS, "--prompt", "x", "-m", word]) == 2
    told = capsys.readouterr()
    assert len(told.err.splitlines()) == 1
    assert told.err.startswith("multitalk: error: ")


def test_launchers_can_carry_a_job_to_another_process() -> None:
    job = functools.partial(run_job, swept=("sampler",))
    assert pickle.loads(pickle.dumps(job)).func is run_job
