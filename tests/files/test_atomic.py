"""Files bear their name whole or not at all, whatever kills their process and whatever the file system lacks."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

from engine.data import Artifact
from engine.errors import SinkError
from engine.files import atomic
from plugins.sinks.disk import DiskConfig, DiskSink

ROOT = Path(__file__).parents[2]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def refuse(*_: Any, **__: Any) -> NoReturn:
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


@pytest.fixture(params=["rename", "link", "lock"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the file system knows: a rename that replaces nothing, hard links alone, or neither."""
    if request.param != "rename":
        monkeypatch.setattr(atomic, "_renameat2", lambda: None)
    if request.param == "lock":
        monkeypatch.setattr(os, "link", refuse)
    return str(request.param)


@pytest.mark.parametrize("way", ["rename", "link", "lock"])
def test_sink_that_is_killed_at_any_call_leaves_a_whole_video_or_none_and_nothing_after_the_next(
    way: str, tmp_path: Path
) -> None:
    script = ROOT / "tests" / "support" / "killed_puts.py"
    done = subprocess.run(
        [sys.executable, str(script), way, str(tmp_path)], capture_output=True, text=True, env=_path(), check=False
    )

    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)["found"]
    assert found["killed, absent"] > 20
    assert found["killed, whole"] > 1


def _path() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)}


def test_one_of_many_gets_the_name_and_the_others_are_told(way: str, tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    told: list[str] = []
    refused: list[str] = []

    def put(number: int) -> None:
        made = tmp_path / f"made-{number}.mp4"
        made.write_bytes(str(number).encode() * 50_000)
        try:
            DiskSink(DiskConfig(folder=str(folder))).put(Artifact(made, "video/mp4", 1.0, 25, filename="a.mp4"))
            told.append(str(number))
        except SinkError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=put, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert names(folder) == ["a.mp4"]
    assert len(refused) == 7
    assert all("exists" in line for line in refused)
    assert [(folder / "a.mp4").read_text()[:1]] == told


def test_name_is_given_after_the_bytes_are_on_the_disk_and_the_folder_is_synced_last(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kept").mkdir()
    made = tmp_path / "made.mp4"
    made.write_bytes(b"video")
    final = tmp_path / "kept" / "a.mp4"
    seen: list[tuple[str, bool]] = []
    sync = os.fsync

    def note(descriptor: int) -> None:
        seen.append((Path(f"/proc/self/fd/{descriptor}").readlink().name, final.exists()))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    DiskSink(DiskConfig(folder=str(tmp_path / "kept"))).put(Artifact(made, "video/mp4", 1.0, 25, filename="a.mp4"))

    (part, named), (folder, then) = seen
    assert part.startswith(".talk-")
    assert (named, folder, then) == (False, "kept", True)


def test_part_of_a_process_at_work_is_not_swept_and_that_of_a_dead_one_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atomic, "_YOUNG", -1.0)
    code = (
        "import sys; from pathlib import Path; from engine.files.atomic import Part\n"
        "part = Part(Path(sys.argv[1]))\nprint('made', flush=True)\nsys.stdin.read()"
    )
    path = tmp_path / atomic.part_name("talk")
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=_path()
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"made\n"

    assert atomic.sweep(tmp_path, "talk") == []
    assert path.exists()

    process.kill()
    process.communicate()
    assert atomic.sweep(tmp_path, "talk") == [path]
    assert not path.exists()


def test_part_of_another_machine_is_swept_when_it_is_old_and_strangers_files_never(tmp_path: Path) -> None:
    old = time.time() - 2 * atomic._OLD
    for name, when in {
        ".talk-0badc0de-12345678.part": old,
        ".talk-1badc0de-12345678.part": time.time(),
        # As earlier versions named them.
        ".talk-abcd1234.part": old,
        ".a.mp4.claim": old,
        "talk-2.mp4": old,
        "talk-2.part": old,
        ".other-0badc0de-12345678.part": old,
    }.items():
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (when, when))

    atomic.sweep(tmp_path, "talk")

    assert names(tmp_path) == [
        ".other-0badc0de-12345678.part",
        ".talk-1badc0de-12345678.part",
        "talk-2.mp4",
        "talk-2.part",
    ]


@pytest.mark.parametrize("content", [b"", b"0badc0de"], ids=["nothing in it", "another machine's"])
def test_claim_of_a_process_that_is_gone_is_taken_over(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = tmp_path / ".a.mp4.claim"
    claim.write_bytes(content)
    old = time.time() - 2 * atomic._LEASE
    os.utime(claim, (old, old))

    with atomic.lock_name(tmp_path / "a.mp4"):
        assert claim.read_bytes() == atomic._machine().encode()

    assert names(tmp_path) == []


def test_claim_of_another_machine_at_work_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic, "_LEASE", 0.1)
    (tmp_path / ".a.mp4.claim").write_bytes(b"0badc0de")
    later = time.time() + 60
    os.utime(tmp_path / ".a.mp4.claim", (later, later))

    with pytest.raises(OSError, match="another process has locked the name"), atomic.lock_name(tmp_path / "a.mp4"):
        pass

    assert names(tmp_path) == [".a.mp4.claim"]


def test_name_of_the_longest_length_is_written_andclaimed(way: str, tmp_path: Path) -> None:
    path = tmp_path / ("ä" * 125 + ".mp4")

    atomic.write(path, b"one")
    atomic.write(path, b"two")
    (tmp_path / "part").write_bytes(b"three")
    with pytest.raises(FileExistsError):
        atomic.rename_new(tmp_path / "part", path)

    assert path.read_bytes() == b"two"
    assert names(tmp_path) == ["part", path.name]


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_write_that_fails_leaves_the_old_file_and_nothing_else(
    fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    atomic.write(path, b"old")
    break_it: dict[str, Callable[[], None]] = {
        "fsync": lambda: monkeypatch.setattr(os, "fsync", refuse),
        "replace": lambda: monkeypatch.setattr(Path, "replace", refuse),
    }
    break_it[fails]()

    with pytest.raises(OSError, match="not permitted"):
        atomic.write(path, b"new")

    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.json"]
