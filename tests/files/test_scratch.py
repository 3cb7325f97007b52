"""Folders of temporary files: told where none can be made, kept while in use, swept when their process died."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from engine.errors import EngineError
from engine.files import scratch as module
from engine.files.scratch import MARK, PREFIX, Scratch, place, scratch, sweep

HOLD = """
import sys, tempfile
from engine.files.scratch import Scratch
folder = Scratch(sys.argv[1])
(folder.path / "video.mp4").write_bytes(b"half")
print(folder.path, flush=True)
sys.stdin.read()
folder.close()
"""


@pytest.fixture(autouse=True)
def where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(module, "_swept", set())
    return tmp_path


@contextmanager
def holding(kind: str = "") -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """Run another process that holds a folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        yield process, Path(process.stdout.readline().strip())
    finally:
        process.kill()
        process.communicate()


def test_a_folder_goes_with_its_block(where: Path) -> None:
    with scratch() as folder:
        assert folder.parent == where
        assert folder.name.startswith(PREFIX)
        (folder / "a").mkdir()
        (folder / "a" / "b").write_text("x")
    assert list(where.iterdir()) == []


def test_a_folder_goes_when_its_block_fails(where: Path) -> None:
    with pytest.raises(ZeroDivisionError), scratch("batch-"):
        _ = 1 / 0
    assert list(where.iterdir()) == []


@pytest.mark.parametrize("kind", ["", "batch-", "endpoint-"])
def test_what_a_killed_process_left_is_swept_at_the_next_start(where: Path, kind: str) -> None:
    with holding(kind) as (process, folder):
        assert (folder / "video.mp4").exists()
        process.kill()
        process.wait()
        assert folder.exists()
    with scratch() as mine:
        assert [entry for entry in where.iterdir() if entry != mine] == []


def test_a_living_process_keeps_its_folder_however_old_it_is(where: Path) -> None:
    with holding() as (process, folder):
        for path in (folder, folder / MARK):
            os.utime(path, (1, 1))
        with scratch():
            assert (folder / "video.mp4").read_bytes() == b"half"
        assert sweep(where) == 0
        process.kill()
        process.wait()
        assert sweep(where) == 1
        assert not folder.exists()


def test_a_folder_of_this_very_process_is_kept(where: Path) -> None:
    with scratch() as folder:
        assert sweep(where) == 0
        assert folder.exists()


def test_a_child_that_was_forked_keeps_the_folder(where: Path) -> None:
    folder = Scratch()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.read(reading, 1)
        os._exit(0)
    assert folder._lock is not None
    os.close(folder._lock)
    assert sweep(where) == 0
    os.write(writing, b"x")
    os.waitpid(child, 0)
    assert sweep(where) == 1
    os.close(reading)
    os.close(writing)


def test_what_is_not_ours_stays(where: Path) -> None:
    old = time.time() - 10 * 24 * 3600
    names = (
        "multitalk-videos",
        "multitalk-abcdefgh",
        "multitalk-batch-abcdefgh",
        "other-abcdefgh",
        "multitalk-ABCDEFGH",
    )
    for name in names:
        (where / name).mkdir()
        (where / name / "film.mp4").write_bytes(b"x")
        os.utime(where / name, (old, old))
    target = where / "target"
    target.mkdir()
    (target / MARK).touch()
    (where / "multitalk-linklink").symlink_to(target)
    (where / "multitalk-filefile").write_text("x")
    assert sweep(where) == 0
    assert all((where / name / "film.mp4").exists() for name in names)
    assert (target / MARK).exists()


def test_an_empty_folder_is_swept_when_it_is_old(where: Path) -> None:
    for name, age in (("multitalk-aaaaaaaa", 10), ("multitalk-bbbbbbbb", 10_000)):
        (where / name).mkdir()
        os.utime(where / name, (time.time() - age, time.time() - age))
    assert sweep(where) == 1
    assert [path.name for path in where.iterdir()] == ["multitalk-aaaaaaaa"]


def test_a_mark_that_is_a_link_is_not_followed(where: Path) -> None:
    (where / "multitalk-aaaaaaaa").mkdir()
    (where / "multitalk-aaaaaaaa" / MARK).symlink_to(where / "other")
    (where / "other").write_text("x")
    assert sweep(where) == 0
    assert (where / "other").exists()


def test_it_is_swept_once_a_process(where: Path) -> None:
    with scratch():
        pass
    (where / "multitalk-aaaaaaaa").mkdir()
    (where / "multitalk-aaaaaaaa" / MARK).touch()
    with scratch():
        assert (where / "multitalk-aaaaaaaa").exists()


@pytest.mark.parametrize("known", [True, False])
def test_a_missing_tmpdir_is_told_and_no_other_is_taken(
    where: Path, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    folder = where / "tmp"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    if known:
        assert place() == str(folder)
    folder.rmdir()
    with pytest.raises(EngineError, match="temporary files cannot be written: No such file or directory") as caught:
        Scratch()
    assert caught.value.code == "disk_unwritable"
    assert "TMPDIR" in caught.value.hint


def test_a_tmpdir_that_is_a_file_is_told(where: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (where / "file").write_text("x")
    monkeypatch.setenv("TMPDIR", str(where / "file"))
    with pytest.raises(EngineError) as caught:
        Scratch()
    assert caught.value.code == "disk_unwritable"


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_tmpdir_that_may_not_be_written_is_told(where: Path) -> None:
    where.chmod(0o500)
    try:
        with pytest.raises(EngineError, match="Permission denied") as caught:
            Scratch()
    finally:
        where.chmod(0o700)
    assert caught.value.code == "disk_unwritable"


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare for a disk of its own")
def test_a_full_disk_is_told_by_a_worker_with_its_code(tmp_path: Path) -> None:
    script = tmp_path / "full.py"
    script.write_text(
        """
import asyncio, base64, io, json, os, sys
from PIL import Image
from engine import Access, EngineService
from engine.serving.worker.handler import Handler, Terms
from engine.serving.worker.warm_engine import WarmEngine
picture = io.BytesIO()
Image.effect_noise((600, 600), 90).save(picture, "PNG")
address = "data:image/png;base64," + base64.b64encode(picture.getvalue()).decode()
job = {"id": "a", "input": {"action": "plan", "reference_image": address, "audio_1": address, "prompt": "x"}}
handler = Handler(WarmEngine(EngineService(["model=tiny", "sink=base64"], access=Access(schemes=("data",)))), Terms())
told = [asyncio.run(handler.handle(job))["error_code"]]
print(json.dumps(told), os.listdir(sys.argv[1]))
""",
        "utf-8",
    )
    disk = tmp_path / "disk"
    disk.mkdir()
    command = f"mount -t tmpfs -o size=100k none {disk} && TMPDIR={disk} {sys.executable} {script} {disk} || exit 9"
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", command],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    if "Operation not permitted" in done.stderr or "permission denied" in done.stderr.lower():
        pytest.skip("no disk of its own may be mounted here")
    assert done.stdout.startswith('["disk_unwritable"] []'), done.stderr
