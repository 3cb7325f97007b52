"""Sinks keep a video whole or not at all, and never replace one unless told."""

from __future__ import annotations

import base64
import errno
import hashlib
import os
from pathlib import Path

import pluggy
import pytest
from full_disk import file_limit

from engine.components import Sink
from engine.data import Artifact
from engine.errors import ConfigError, SinkError
from engine.plugin import spec
from engine.plugin.register import Register
from plugins.sinks import base64 as base64_plugin
from plugins.sinks import disk as disk_plugin
from plugins.sinks.base64 import Base64Config, Base64Sink
from plugins.sinks.disk import DiskConfig, DiskSink


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "kept").mkdir()
    return tmp_path / "kept"


def artifact(tmp_path: Path, content: bytes = b"video", filename: str | None = None) -> Artifact:
    path = tmp_path / "made.mp4"
    path.write_bytes(content)
    return Artifact(path, "video/mp4", 1.0, 25, filename=filename)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_plugins_offer_their_sinks() -> None:
    manager = pluggy.PluginManager("multitalk_engine")
    manager.add_hookspecs(spec)
    manager.register(disk_plugin)
    manager.register(base64_plugin)
    register: Register[Sink] = Register("sink")

    manager.hook.register_sinks(register=register)

    assert register.names() == ("base64", "disk")
    assert isinstance(register.build(DiskConfig()), DiskSink)


def test_disk_answers_with_an_absolute_path(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = artifact(tmp_path, filename="a.mp4")

    kept = DiskSink(DiskConfig(folder="kept")).put(given)

    assert kept.address == str(folder / "a.mp4")
    assert kept.content is None
    assert (folder / "a.mp4").read_bytes() == b"video"
    assert not given.path.exists()
    assert names(folder) == ["a.mp4"]


def test_disk_finds_a_free_name(tmp_path: Path, folder: Path) -> None:
    sink = DiskSink(DiskConfig(folder=str(folder)))

    for _ in range(3):
        sink.put(artifact(tmp_path))

    assert names(folder) == ["talk-2.mp4", "talk-3.mp4", "talk.mp4"]


def test_disk_refuses_a_name_that_is_taken(tmp_path: Path, folder: Path) -> None:
    (folder / "a.mp4").write_bytes(b"old")
    sink = DiskSink(DiskConfig(folder=str(folder)))

    for call in (lambda: sink.check("a.mp4"), lambda: sink.put(artifact(tmp_path, filename="a.mp4"))):
        with pytest.raises(SinkError, match="exists") as caught:
            call()
        assert "sink.overwrite=true" in caught.value.hint
    assert (folder / "a.mp4").read_bytes() == b"old"
    assert names(folder) == ["a.mp4"]


def test_disk_overwrites_when_told(tmp_path: Path, folder: Path) -> None:
    (folder / "a.mp4").write_bytes(b"old")
    sink = DiskSink(DiskConfig(folder=str(folder), overwrite=True))

    sink.check("a.mp4")
    sink.put(artifact(tmp_path, filename="a.mp4"))

    assert (folder / "a.mp4").read_bytes() == b"video"
    assert names(folder) == ["a.mp4"]


def test_disk_makes_its_folder_at_put_not_at_check(tmp_path: Path) -> None:
    sink = DiskSink(DiskConfig(folder=str(tmp_path / "x" / "y")))

    sink.check("a.mp4")
    assert not (tmp_path / "x").exists()
    sink.put(artifact(tmp_path, filename="a.mp4"))
    assert (tmp_path / "x" / "y" / "a.mp4").exists()


def test_missing_folder_is_an_error_without_mkdir(tmp_path: Path) -> None:
    with pytest.raises(SinkError, match="does not exist") as caught:
        DiskSink(DiskConfig(folder=str(tmp_path / "x"), mkdir=False)).check(None)
    assert caught.value.field == "sink.folder"


@pytest.mark.parametrize("below", ["", "/deeper"])
def test_file_in_place_of_the_folder_is_an_error(tmp_path: Path, below: str) -> None:
    (tmp_path / "x").touch()

    with pytest.raises(SinkError):
        DiskSink(DiskConfig(folder=f"{tmp_path}/x{below}")).check(None)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_folder_without_permission_is_an_error(folder: Path) -> None:
    folder.chmod(0o500)

    with pytest.raises(SinkError, match="Permission denied"):
        DiskSink(DiskConfig(folder=str(folder))).check(None)


def test_folder_of_that_name_is_an_error(folder: Path) -> None:
    (folder / "a.mp4").mkdir()

    with pytest.raises(SinkError, match="is a folder"):
        DiskSink(DiskConfig(folder=str(folder), overwrite=True)).check("a.mp4")


def other_file_system(monkeypatch: pytest.MonkeyPatch, made: Path) -> None:
    """Let a move of `made` fail as one between file systems does."""
    replace = Path.replace

    def refuse(path: Path, target: Path) -> Path:
        if path == made:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", refuse)


def test_video_on_another_file_system_is_copied(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = artifact(tmp_path)
    given.path.chmod(0o640)
    other_file_system(monkeypatch, given.path)

    DiskSink(DiskConfig(folder=str(folder))).put(given)

    assert names(folder) == ["talk.mp4"]
    assert (folder / "talk.mp4").stat().st_mode & 0o777 == 0o640
    assert not given.path.exists()


def test_full_disk_leaves_nothing_behind(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = artifact(tmp_path, b"x" * 200_000)
    other_file_system(monkeypatch, given.path)
    with file_limit(65_536), pytest.raises(SinkError, match="cannot store the video"):
        DiskSink(DiskConfig(folder=str(folder))).put(given)

    assert names(folder) == []


def test_file_system_without_links_still_replaces_nothing(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    (folder / "talk.mp4").write_bytes(b"old")

    kept = DiskSink(DiskConfig(folder=str(folder))).put(artifact(tmp_path))

    assert kept.address == str(folder / "talk-2.mp4")
    assert (folder / "talk.mp4").read_bytes() == b"old"
    assert names(folder) == ["talk-2.mp4", "talk.mp4"]


def test_base64_hands_over_the_content(tmp_path: Path) -> None:
    given = artifact(tmp_path)

    sink: Sink = Base64Sink(Base64Config())
    sink.check("any.mp4")
    kept = sink.put(given)

    assert kept.address is None
    assert base64.b64decode(kept.content or "") == b"video"
    assert not given.path.exists()


def test_base64_of_a_missing_file_is_a_sink_error(tmp_path: Path) -> None:
    given = artifact(tmp_path)
    given.path.unlink()

    with pytest.raises(SinkError, match="read back"):
        Base64Sink(Base64Config()).put(given)


def test_base64_text_of_exactly_the_limit_is_handed_over(tmp_path: Path) -> None:
    kept = Base64Sink(Base64Config(limit=16)).put(artifact(tmp_path, b"x" * 10))

    assert len(kept.content or "") == 16
    assert "eHh4" not in repr(kept)


def test_every_sink_tells_the_digest_and_the_length_of_what_it_keeps(tmp_path: Path, folder: Path) -> None:
    for sink in (Base64Sink(Base64Config()), DiskSink(DiskConfig(folder=str(folder)))):
        kept = sink.put(artifact(tmp_path, b"video"))
        assert (kept.sha256, kept.bytes) == (hashlib.sha256(b"video").hexdigest(), 5)


def test_base64_limit_below_one_is_a_config_error() -> None:
    with pytest.raises(ConfigError) as caught:
        Base64Sink(Base64Config(limit=0))
    assert caught.value.field == "sink.limit"
