"""The folder of a published video: its name, its files, and that nothing else is touched."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.errors import SinkError
from engine.files.live import DiskLiveFolder, remove_job
from plugins.sinks.disk import DiskConfig, DiskSink


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_video_is_published_beside_it_under_the_first_free_name(tmp_path: Path) -> None:
    sink = DiskSink(DiskConfig(folder=str(tmp_path)))
    addresses = []
    for filename in ("anna.mp4", "anna.mp4", None):
        place = sink.live(filename)
        place.playlist("#EXTM3U\n")
        addresses.append(place.address)

    expected = [f"{name}.live/index.m3u8" for name in ("anna", "anna-2", "talk")]
    assert addresses == [str(tmp_path / name) for name in expected]


def test_with_overwrite_the_old_parts_make_way_and_other_files_stay(tmp_path: Path) -> None:
    sink = DiskSink(DiskConfig(folder=str(tmp_path), overwrite=True))
    first = sink.live("a.mp4")
    first.part("init.mp4", b"old", "video/mp4")
    first.part("part-00000.m4s", b"old", "video/iso.segment")
    (tmp_path / "a.live" / "notes.txt").touch()

    sink.live("a.mp4").part("init.mp4", b"new", "video/mp4")

    assert names(tmp_path) == ["a.live", "a.live/init.mp4", "a.live/notes.txt"]
    assert (tmp_path / "a.live" / "init.mp4").read_bytes() == b"new"


def test_nothing_is_created_before_the_first_part(tmp_path: Path) -> None:
    place = DiskLiveFolder([tmp_path / "job" / "attempt"], url="https://example.com/live/job/attempt/")
    assert names(tmp_path) == []
    assert place.address == "https://example.com/live/job/attempt/index.m3u8"
    place.remove()
    assert place.part("init.mp4", b"init", "video/mp4") == "init.mp4"
    remove_job(tmp_path, "job")
    assert names(tmp_path) == []


def test_a_place_that_cannot_be_written_to_is_named_without_its_path(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place, key in (
        (DiskLiveFolder([tmp_path / "file" / "live"]), "live.folder"),
        (DiskSink(DiskConfig(folder=str(tmp_path / "file"))).live("a.mp4"), "sink.folder"),
    ):
        with pytest.raises(SinkError) as caught:
            place.part("init.mp4", b"", "video/mp4")
        # The answer of a job has only the sentence.
        assert caught.value.what.startswith(f"the folder of {key} cannot be written to: ")
        assert caught.value.field == key
        assert str(tmp_path) not in str(caught.value)
