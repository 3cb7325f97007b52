"""Sweeps: each run has a folder with its video, its config and its figures, and the weights of the run before."""

from __future__ import annotations

import functools
import gc
import json
import os
import pickle
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import yaml

from engine import hookimpl
from engine.cli.main import main
from engine.plugin.manager import installed
from engine.sweeps.sweep import run_job

EXAMPLES = Path(__file__).parents[2] / "engine" / "examples"
MEDIA = ["--image", str(EXAMPLES / "one.png"), "--audio", str(EXAMPLES / "one.flac")]
PROMPT = "one, two='${x}' \\"
#: The quickest video there is, and one of two windows whose mouths can be followed.
QUICK = ["generate", *MEDIA, "--frames", "1", "--prompt", "x", "--quiet", "--output", "films/talk.mp4"]
TALK = ["--frames", "13", "model.window=9", "continuation.frames=5", "sampler.steps=1"]
SECRET = "sentinel-of-a-key"


@pytest.fixture(autouse=True)
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def metrics(folder: Path) -> dict[str, Any]:
    told = json.loads((folder / "metrics.json").read_text("utf-8"))
    assert isinstance(told, dict)
    return told


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Models that were loaded, as references that keep none of them; `None` in their place when the next one came."""
    from plugins.families.multitalk.model import load_multitalk

    seen: list[Any] = []

    def counted(*words: Any, **named: Any) -> Any:
        seen[:] = [model if model is None or model() is not None else None for model in seen]
        model = load_multitalk(*words, **named)
        seen.append(weakref.ref(model))
        return model

    monkeypatch.setattr("plugins.families.multitalk.model.load_multitalk", counted)
    return seen


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of two runs, made in this process."""
    folder = tmp_path_factory.mktemp("sweep")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        words = [*MEDIA, *TALK, "--quiet", "--prompt", PROMPT, "--negative-prompt", f"no {SECRET}"]
        assert main(["generate", *words, "--output", "films/talk.mp4", "-m", "sampler=standard,turbo"]) == 0
    return folder / "films"


def test_a_run_leaves_its_video_its_config_and_its_figures_and_nothing_else(films: Path) -> None:
    left = sorted(path.relative_to(films).as_posix() for path in films.rglob("*") if path.is_file())
    assert left == [f"{run}/{name}" for run in (0, 1) for name in ("config.yaml", "metrics.json", "talk.mp4")]


def test_each_run_is_the_combination_it_says(films: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for run, bundle in ((0, "standard"), (1, "turbo")):
        assert main(["show", str(films / str(run) / "talk.mp4"), "--json"]) == 0
        provenance = json.loads(capsys.readouterr().out)
        config = yaml.safe_load((films / str(run) / "config.yaml").read_text("utf-8"))
        told = metrics(films / str(run))
        assert provenance["sampler"]["bundle"] == config["sampler"]["bundle"] == told["overrides"]["sampler"] == bundle
        assert provenance["request"]["prompt"] == config["request"]["prompt"] == PROMPT
        assert (told["run"], told["status"], told["video"], told["frames"]) == (run, "done", "talk.mp4", 13)


def test_the_second_run_does_not_load_again(films: Path) -> None:
    first, second = (metrics(films / run) for run in ("0", "1"))
    assert (first["weights_reused"], second["weights_reused"]) == (False, True)
    assert second["timings"]["load"] < first["timings"]["load"]


def test_figures_are_numbers_or_say_why_not(films: Path) -> None:
    told = metrics(films / "0")
    assert {"read", "load", "encode", "denoise", "decode", "write"} <= told["timings"].keys()
    assert told["timings"]["total"] == pytest.approx(sum(list(told["timings"].values())[:-2]), abs=0.01)
    measures = told["measures"]
    assert measures["seam_ratio"]["value"] > 0
    assert -1 <= measures["lip_sync"]["value"] <= 1
    assert measures["identity"]["holds"] in (True, False)
    assert measures["sharpness_kept"]["value"] > 0
    assert measures["lab_drift"] == {"value": None, "reason": "shorter than two seconds"}


def test_nothing_in_the_folders_tells_a_secret_a_path_or_the_media(films: Path) -> None:
    for path in films.rglob("*"):
        if path.suffix in (".yaml", ".json"):
            text = path.read_text("utf-8")
            for word in (SECRET, str(EXAMPLES), str(films), str(Path.home()), "one.png", "one.flac"):
                assert word not in text, path


@pytest.mark.slow
def test_another_choice_at_boot_loads_anew_and_releases_what_was_there(desk: Path, loads: list[Any]) -> None:
    assert main([*QUICK, "sampler.steps=1", "-m", "memory=none,model-offload"]) == 0
    told = [metrics(desk / "films" / str(run)) for run in range(2)]
    assert [run["weights_reused"] for run in told] == [False, False]
    # The first was gone before the second came, and the sweep kept neither.
    assert loads[0] is None
    gc.collect()
    assert [model if model is None else model() for model in loads] == [None, None]


def test_a_run_that_cannot_be_made_is_recorded_and_the_others_go_on_with_the_same_weights(
    desk: Path, loads: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = [EXAMPLES / "one.png", desk / "none.png", EXAMPLES / "two.png"]
    assert main([*QUICK, "sampler.steps=1", "-m", "request.image=" + ",".join(map(str, pictures))]) == 2
    told = capsys.readouterr()
    assert told.out.splitlines() == [str(desk / "films" / run / "talk.mp4") for run in ("0", "2")]
    (line,) = [line for line in told.err.splitlines() if "error" in line]
    assert line.startswith("multitalk: error: job 1: request.image: ")
    failed = metrics(desk / "films" / "1")
    assert (failed["status"], failed["overrides"]["request.image"], failed["video"]) == ("failed", "none.png", None)
    assert failed["error"]["code"] == "bad_request"
    assert "request.image" in failed["error"]["message"]
    assert len(loads) == 1
    assert main(["compare", "films"]) == 0


@pytest.mark.slow
def test_a_bug_keeps_its_traceback_and_the_others_go_on_with_new_weights(
    desk: Path, loads: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    class Clumsy:
        @hookimpl
        def step_finished(self, request: Any) -> None:
            if request.seed == 1:
                raise ZeroDivisionError(f"in {desk}")

    plugins = installed().plugins
    name = plugins.register(Clumsy())
    try:
        assert main([*QUICK, "sampler.steps=1", "-m", "request.seed=1,2"]) == 1
    finally:
        plugins.unregister(name=name)
    assert "Traceback" in capsys.readouterr().err
    failed = metrics(desk / "films" / "0")
    assert failed["error"] == {"code": "internal_error", "message": "ZeroDivisionError: in [path]"}
    assert metrics(desk / "films" / "1")["status"] == "done"
    assert len(loads) == 2


def test_the_folder_of_an_earlier_sweep_is_left_alone(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = desk / "films" / "0" / "metrics.json"
    old.parent.mkdir(parents=True)
    old.write_text("{}")
    assert main([*QUICK, "-m", "request.seed=1,2"]) == 2
    assert "contains the runs of an earlier sweep" in capsys.readouterr().err
    assert [path for path in desk.rglob("*") if path.is_file()] == [old]


def test_a_sweep_has_no_folder_for_all_videos(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*QUICK, "-m", "sink.folder=elsewhere", "request.seed=1,2"]) == 2
    assert "--output FOLDER/NAME.mp4" in capsys.readouterr().err
    assert not list(desk.iterdir())


@pytest.mark.parametrize(
    ("word", "field", "named"),
    [
        ("sampler=standard,eulr", "sampler", "job 1: sampler=eulr"),
        ("sampler.stepz=1,2", "sampler.stepz", "job 0: sampler.stepz=1"),
        ("request.fps=1,abc", "request.fps", "job 1: request.fps=abc"),
        ("request.fps=25,-1,12.5", "request.fps", "job 1: request.fps=-1"),
        ("request.frames=1,abc", "request.frames", "job 1: request.frames=abc"),
        ("sampler.steps=1,0", "sampler.steps", "job 1: sampler.steps=0"),
        ("continuation.frames=5,6", "continuation.frames", "job 1: continuation.frames=6"),
    ],
)
def test_a_combination_of_which_no_video_can_be_made_stops_the_sweep_before_its_first_run(
    word: str, field: str, named: str, desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*QUICK, "-m", word]) == 2
    told = capsys.readouterr()
    (line,) = told.err.splitlines()
    assert line.startswith(f"multitalk: error: {field}: ")
    assert f"({named})" in line
    assert not told.out
    assert not list(desk.iterdir())


def test_the_combination_that_is_named_has_all_its_values(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*QUICK, "-m", "request.seed=1,2", "request.frames=1,auto,0"]) == 2
    assert "(job 4: request.frames=0, request.seed=1)" in capsys.readouterr().err


@pytest.mark.slow
def test_an_experiment_is_a_sweep_in_which_words_of_the_command_line_win(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *MEDIA, "--prompt", "x", "--json", "-m", "experiment=sampling", "guidance=cfg"]) == 0
    told = capsys.readouterr()
    plans = [json.loads(line) for line in told.out.splitlines()]
    made = [(plan["sampler"].split()[0], plan["steps"], plan["guidance"]) for plan in plans]
    assert made == [(sampler, steps, "cfg") for sampler in ("euler", "unipc") for steps in (4, 10)]
    assert "multitalk: job 3: sampler=unipc, sampler.steps=10" in told.err
    # A plan makes nothing, and leaves nothing.
    assert not [path for path in desk.rglob("*") if path.is_file()]


def test_launchers_can_carry_a_job_to_another_process() -> None:
    job = functools.partial(run_job, swept=("sampler",))
    assert pickle.loads(pickle.dumps(job)).func is run_job


def launch(*words: str) -> None:
    """Run a sweep as a user does: launchers start processes of their own."""
    done = subprocess.run(
        [sys.executable, "-m", "engine", *QUICK, "sampler.steps=1", "-m", *words],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_joblib_runs_side_by_side_and_a_process_loads_once(desk: Path) -> None:
    launch("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "request.seed=1,2,3")
    told = [metrics(desk / "films" / str(run)) for run in range(3)]
    assert [run["overrides"]["request.seed"] for run in told] == [1, 2, 3]
    assert [run["status"] for run in told] == ["done"] * 3
    assert sum(not run["weights_reused"] for run in told) <= 2


@pytest.mark.slow
def test_submitit_runs_in_a_job_of_its_own(desk: Path) -> None:
    launch("hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5", "request.seed=7")
    told = metrics(desk / "films" / "0")
    assert (told["status"], told["seed"]) == ("done", 7)
    assert (desk / "films" / "0" / "talk.mp4").stat().st_size == told["bytes"]
