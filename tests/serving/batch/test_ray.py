"""`launcher=ray` on a cluster of this machine's own."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from batch_workers import WordWorker

from engine.cli.main import main
from engine.errors import ConfigError
from engine.plugin.manager import installed
from engine.serving.batch.jobs import JobFile
from engine.serving.batch.results import open_results
from engine.serving.batch.run import BatchRun


@pytest.mark.slow
def test_actors_do_jobs_and_one_that_dies_loses_its_job_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    # As on a machine of a cluster, where what a worker is made of has to be installed.
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2] / "support"))
    words = {"a": "die-once mark", "b": "film", "c": "film", "d": "wait reached"}
    path = tmp_path / "shots.jsonl"
    path.write_text("".join(json.dumps({"id": name, "input": {"prompt": word}}) + "\n" for name, word in words.items()))
    jobs = JobFile(path, sink="disk", in_folder=True)
    warned: list[str] = []
    said: list[str] = []
    with open_results(tmp_path / "results", tmp_path) as results:
        run = BatchRun(jobs, results, jobs.lines, said.append, warned.append)
        with ray(workers=2).launch(functools.partial(WordWorker, tmp_path), 4) as workers:
            assert len(workers) == 2

            def stop() -> None:
                while run.counts.total() < 3 or not (tmp_path / "reached").exists():
                    time.sleep(0.05)
                run.stop()

            threading.Thread(target=stop, daemon=True).start()
            run.process(workers)
            listening = addresses()
    assert (run.counts, run.left) == ({"done": 3}, 1)
    assert len(warned) == 1
    assert "b:  50%  denoise" in said
    records = [json.loads(line) for line in (tmp_path / "results").read_text().splitlines()]
    assert {record["output"]["folder"] for record in records} == {str(tmp_path)}
    assert capfd.readouterr().out == ""
    # Nobody else can reach it, and nobody is told that it was here.
    assert listening
    assert all(address.removeprefix("::ffff:") in ("127.0.0.1", "::1") for address in listening)
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


def addresses() -> set[str]:
    """Return where this process and those it started listen."""
    us = psutil.Process()
    found = set()
    for process in [us, *us.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            found |= {seen.laddr.ip for seen in process.net_connections("tcp") if seen.status == psutil.CONN_LISTEN}
    return found


def ray(**changes: Any) -> Any:
    launchers = installed().launchers
    return launchers.build(launchers.config("ray")(**{"device": "cpu", "address": "local"} | changes))


EXAMPLES = Path(__file__).parents[3] / "engine" / "examples"
#: What is wrong with a line is said before a launcher is asked for, so this one is sound.
SOUND = json.dumps(
    {
        "input": {
            "reference_image": str(EXAMPLES / "one.png"),
            "audio_1": str(EXAMPLES / "one.flac"),
            "prompt": "x",
            "num_frames": "auto",
        }
    }
)


def test_without_ray_the_error_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "ray", None)
    (tmp_path / "a.jsonl").write_text(f"{SOUND}\n")
    assert main(["batch", "a.jsonl", "launcher=ray"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "multitalk: error: launcher: launcher=ray needs the package 'ray', which is not installed; "
        "pip install 'multitalk-engine[ray]'"
    )


@pytest.mark.parametrize("changes", [{"workers": 0}, {"cpus": -1.0}])
def test_numbers_that_cannot_be_meant_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"^launcher\.{next(iter(changes))}: "):
        ray(**changes)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nonsense"])
def test_a_cluster_that_is_not_there_is_one_line(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").write_text(f"{SOUND}\n")
    assert main(["batch", "a.jsonl", "launcher=ray", f"launcher.address={address}"]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(errors) == 1
    assert errors[0].startswith(f"multitalk: error: launcher.address: no Ray cluster at {address!r}: ")
