"""The file of results: whole lines whatever happens, what a new start makes of them, and nobody else's files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from engine.errors import ConfigError, SinkError
from engine.serving.batch.jobs import Line
from engine.serving.batch.results import open_results

DONE = {"video_path": "a.mp4"}
FAILED = {"error": "prompt: it is missing", "error_code": "missing_field", "field": "prompt", "hint": "give text"}


def line(name: str, sha256: str = "0" * 64) -> Line:
    return Line(name, 1, sha256, name, f"{name}.mp4", 0)


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in path.read_text("utf-8").splitlines()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "films" / "shots.results.jsonl"


def test_a_line_is_there_as_soon_as_it_is_known(path: Path) -> None:
    with open_results(path, path.parent) as results:
        assert results.add(line("a"), DONE, 1.23456) == "done"
        assert results.add(line("b"), FAILED, 0.5) == "failed"
        assert records(path) == [
            {"id": "a", "line": 1, "status": "done", "seconds": 1.235, "output": DONE, "sha256": "0" * 64},
            {"id": "b", "line": 1, "status": "failed", "seconds": 0.5, **FAILED, "sha256": "0" * 64},
        ]
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("name", ["films/à la carte.mp4", "no text \udcff.mp4", "half a letter \ud83c.mp4"])
def test_any_name_can_be_kept(path: Path, name: str) -> None:
    with open_results(path, None) as results:
        results.add(line("a"), {"video_path": name}, 1)
    assert records(path)[0]["output"] == {"video_path": name}


def test_what_was_done_or_failed_is_known_at_the_next_start(path: Path) -> None:
    with open_results(path, None) as results:
        results.add(line("a"), DONE, 1)
        results.add(line("b"), FAILED, 1)
        results.add(line("c"), FAILED, 1)
        results.add(line("c"), DONE, 1)
    with open_results(path, None) as results:
        assert [results.status(line(name)) for name in "abcd"] == ["done", "failed", "done", None]


def test_a_failed_job_whose_line_was_mended_is_to_be_done(path: Path) -> None:
    with open_results(path, None) as results:
        results.add(line("a"), DONE, 1)
        results.add(line("b"), FAILED, 1)
        assert results.status(line("b", "1" * 64)) is None
        assert results.status(line("a", "1" * 64)) == "done"
        assert results.changed(line("a", "1" * 64))


@pytest.mark.parametrize("kept", [0, 1, 40, -1])
def test_half_a_line_is_cut_off(path: Path, kept: int) -> None:
    with open_results(path, None) as results:
        results.add(line("a"), DONE, 1)
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:kept])
    with open_results(path, None) as results:
        assert path.read_bytes() == whole
        results.add(line("b"), DONE, 1)
    assert [record["id"] for record in records(path)] == ["a", "b"]


@pytest.mark.parametrize("text", ["{", "[]", '{"id": "a"}', '{"input": {"prompt": "x"}}'])
def test_a_file_of_something_else_is_left_alone(path: Path, text: str) -> None:
    path.parent.mkdir()
    path.write_text(f"{text}\n")
    with (
        pytest.raises(ConfigError, match=r"^entrypoint\.results: line 1 of .* is not a result of a batch"),
        open_results(path, None),
    ):
        pass
    assert path.read_text() == f"{text}\n"


def test_only_one_batch_writes_to_a_file(path: Path) -> None:
    with (
        open_results(path, None),
        pytest.raises(ConfigError, match="another batch writes to"),
        open_results(path, None),
    ):
        pass


def test_results_that_cannot_be_written_are_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(SinkError, match=r"^entrypoint\.results: cannot write"),
        open_results(tmp_path / "file" / "r", None),
    ):
        pass


#: Begins a job, leaves a video, and is killed before it can say so.
KILLED = """
import os, sys
from pathlib import Path
from engine.serving.batch.results import open_results
from test_results import line
with open_results(Path(sys.argv[1]), Path(sys.argv[1]).parent) as results:
    results.begin(line("begun"))
    results.begin(line("done"))
    results.begin(line("theirs"))
    for name in ("begun", "done"):
        (results.path.parent / f"{name}.mp4").touch()
    results.add(line("done"), {"video_path": "done.mp4"}, 1)
    os.kill(os.getpid(), 9)
"""


def test_a_killed_batch_lets_its_last_videos_be_made_again_and_touches_no_others(path: Path) -> None:
    path.parent.mkdir()
    (path.parent / "theirs.mp4").write_text("not of a batch")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    killed = subprocess.run([sys.executable, "-c", KILLED, str(path)], env=environment, check=False)
    assert killed.returncode == -9
    assert (path.parent / "begun.mp4").exists()
    with open_results(path, path.parent) as results:
        assert results.status(line("done")) == "done"
        assert results.status(line("begun")) is None
    assert {film.name for film in path.parent.glob("*.mp4")} == {"done.mp4", "theirs.mp4"}
    assert (path.parent / "theirs.mp4").read_text() == "not of a batch"


def test_what_was_withdrawn_leaves_nothing(path: Path) -> None:
    with open_results(path, path.parent) as results:
        results.begin(line("a"))
        (path.parent / "a.mp4").touch()
        results.discard(line("a"))
        assert not (path.parent / "a.mp4").exists()
    # From now on a file of that name is somebody's.
    (path.parent / "a.mp4").touch()
    with open_results(path, path.parent):
        assert (path.parent / "a.mp4").exists()
