"""`multitalk batch`, from the command line to the videos."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from engine.cli.main import main
from engine.serving.batch.jobs import JobFile
from engine.serving.batch.results import open_results

EXAMPLES = Path(__file__).parents[3] / "engine" / "examples"
ASKED: dict[str, Any] = {
    "reference_image": "media/one.png",
    "audio_1": "media/one.flac",
    "prompt": "a person talks",
    "num_frames": 5,
    "fps": 25,
    "sampling_steps": 2,
    "turbo": True,
}
#: Seconds; a busy machine imports torch for a minute.
PATIENCE = 300.0


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # Not where the jobs are: their paths count from their own folder.
    (tmp_path / "desk").mkdir()
    monkeypatch.chdir(tmp_path / "desk")
    # A batch that is killed leaves its temporary folder behind.
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "jobs" / "media").mkdir(parents=True)
    for name in ("one.png", "one.flac"):
        shutil.copy(EXAMPLES / name, tmp_path / "jobs" / "media")
    return tmp_path


def written(desk: Path, *jobs: dict[str, Any] | str) -> Path:
    path = desk / "jobs" / "shots.jsonl"
    path.write_text("".join(f"{job if isinstance(job, str) else json.dumps(job)}\n" for job in jobs))
    return path


def job(name: str, **changes: Any) -> dict[str, Any]:
    return {"id": name, "input": ASKED | changes}


def command(path: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "engine", "batch", str(path), "model=tiny", "device=cpu", "sink.folder=films", *words]


def records(desk: Path) -> list[dict[str, Any]]:
    results = desk / "desk" / "films" / "shots.results.jsonl"
    return [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []


@pytest.mark.slow
def test_a_batch_that_was_killed_goes_on_where_it_was(desk: Path) -> None:
    jobs = [job(name, seed=seed) for seed, name in enumerate(("anna", "bert", "carl"))]
    path = written(desk, *jobs, job("dora", num_framez=5), "{", job("emil", audio_1="nobody.flac"))
    first = subprocess.Popen(command(path, "--quiet"), cwd=desk / "desk", start_new_session=True)
    until = time.monotonic() + PATIENCE
    # What is wrong has its result before a worker is started.
    while not any(record["status"] == "done" for record in records(desk)):
        assert first.poll() is None
        assert time.monotonic() < until
        time.sleep(0.02)
    workers = psutil.Process(first.pid).children(recursive=True)
    assert workers
    first.kill()
    first.wait()
    # A worker that nobody listens to leaves the device to others.
    _, left = psutil.wait_procs(workers, timeout=PATIENCE)
    assert not left
    before = [record["id"] for record in records(desk)]
    assert "anna" in before
    assert len(before) < 6

    again = subprocess.run(
        command(path, "--json", "launcher.workers=2"), cwd=desk / "desk", capture_output=True, text=True, check=False
    )
    assert again.returncode == 3, again.stderr
    told = json.loads(again.stdout.splitlines()[-1])
    assert (told["jobs"], told["done"], told["failed"], told["left"], told["skipped"]) == (6, 3, 3, 0, len(before))
    found = {record["id"]: record for record in records(desk)}
    assert len(found) == len(records(desk)) == 6
    for name in ("anna", "bert", "carl"):
        film = desk / "desk" / "films" / f"{name}.mp4"
        assert found[name]["output"]["video_path"] == str(film)
        assert found[name]["output"]["bytes"] == film.stat().st_size
        assert found[name]["output"]["frames"] == 5
    codes = {found[name]["error_code"] for name in found if found[name]["status"] == "failed"}
    assert codes == {"unknown_field", "bad_request"}
    assert found["dora"]["field"] == "num_framez"
    assert found["emil"]["field"] == "audio_1"
    assert {item.suffix for item in (desk / "desk" / "films").iterdir()} == {".mp4", ".jsonl"}
    assert "warning" not in again.stderr

    # Nothing is left to do, and no process is started for that; but a line that was mended is another job.
    path = written(desk, *jobs)
    assert main(["batch", str(path), "model=tiny", "sink.folder=films"]) == 0
    assert len(records(desk)) == 6


def test_failed_jobs_are_done_again_only_if_asked_for(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(desk, "{")
    words = ["batch", str(path), "sink.folder=films"]
    (line,) = JobFile(path, sink="disk", in_folder=True).lines
    with open_results(Path("films/shots.results.jsonl"), None) as kept:
        kept.add(line, {"error": "it failed", "error_code": "internal_error"}, 1)
    assert main([*words, "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["skipped"] == 1
    assert main([*words, "--json", "--retry-failed"]) == 3
    assert json.loads(capsys.readouterr().out)["skipped"] == 0
    assert [record["error_code"] for record in records(desk)] == ["internal_error", "bad_request"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["batch"], "entrypoint.jobs: no file of jobs; multitalk batch JOBS.jsonl"),
        (["batch", "none.jsonl"], "entrypoint.jobs: cannot read 'none.jsonl'"),
        (["batch", "a.jsonl", "b.jsonl"], "command line: 'b.jsonl' is neither a flag"),
        (["batch", "a.jsonl", "--grace", "-1"], "entrypoint.grace: -1 is out of range; 0 to 86400"),
        (["batch", "a.jsonl", "--max-steps", "1"], "entrypoint.max_steps: 1 is out of range; 2 to 1000"),
        (["batch", "a.jsonl", "launcher=slurm"], "launcher: no launcher named 'slurm'; installed: local, ray"),
    ],
)
def test_what_cannot_be_begun_is_one_line(
    words: list[str], told: str, desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert capsys.readouterr().err.startswith(f"multitalk: error: {told}")
    assert not list((desk / "desk").iterdir())


def test_a_done_job_whose_line_was_changed_is_told(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(desk, job("anna"))
    with open_results(Path("shots.results.jsonl"), None) as kept:
        kept.add(JobFile(path, sink="disk", in_folder=True).lines[0], {"video_path": "anna.mp4"}, 1)
    written(desk, job("anna", seed=5))
    assert main(["batch", str(path), "--quiet"]) == 0
    assert "multitalk: warning: the job 'anna' in line 1 was changed since it was done" in capsys.readouterr().err


def test_all_lines_are_checked_before_anything_is_loaded(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jobs = [job("anna"), job("long", num_frames="auto", sampling_steps=3), job("gone", audio_1="nobody.flac")]
    path = written(desk, *jobs, job("typo", num_framez=5), "{", job("many", overrides=["sampler.steps=1000"]))
    words = ["batch", str(path), "model=tiny", "device=cpu", "sink.folder=films", "--check"]

    assert main([*words, "--json"]) == 3
    out, err = capsys.readouterr()
    told = json.loads(out.splitlines()[-1])
    assert (told["jobs"], told["videos"], told["frames"]) == (6, 2, 5 + 69)
    assert told["seconds"] == pytest.approx(0.2 + 69 / 25, abs=0.001)
    assert told["cards"]
    assert {wrong["id"].partition("-")[0]: wrong["error_code"] for wrong in told["wrong"]} == {
        "gone": "bad_request",
        "typo": "unknown_field",
        "job": "bad_request",
        "many": "out_of_range",
    }
    # The paths are the user's own.
    assert str(desk / "jobs" / "nobody.flac") in err
    assert "by default jobs have 100 frames at 8 per second, 20 steps, a text scale of 7.5, seed 42" in err
    assert "2 videos to make: 74 frames, 3.0 s in all; 4 cannot be made" in err
    assert "USD" in err
    assert not (desk / "desk" / "films").exists()

    assert main([*words, "--defaults-of", "model", "--json"]) == 3
    assert "are as long as their voices at the model's own rate, the model's steps and text scale" in (
        capsys.readouterr().err
    )


@pytest.mark.slow
def test_what_is_wrong_is_kept_first_and_the_others_are_counted_down(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(desk, job("anna"), job("bert", seed=1), job("gone", audio_1="nobody.flac"))
    assert main(["batch", str(path), "model=tiny", "device=cpu", "sink.folder=films"]) == 3
    err = capsys.readouterr().err
    assert [record["id"] for record in records(desk)] == ["gone", "anna", "bert"]
    assert str(desk / "jobs" / "nobody.flac") in records(desk)[0]["error"]
    assert "2 videos to make: 10 frames, 0.4 s in all; 1 cannot be made" in err
    assert "extrapolated from the first job" in err
    first = next(line for line in err.splitlines() if "anna: done after" in line)
    assert "1 of 2, about " in first
    assert first.endswith(" left")
