"""A video that is published while it is made: players can follow it, and it never costs the video."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from segments import decoded, video, write

from engine.data import Live
from engine.errors import SinkError
from engine.files.live import DiskLiveFolder
from engine.media.segments import Segment
from engine.stages.publish import Publisher

COUNTS = (9, 5, 0, 7)


def until(ready: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.005)


def playlist(folder: Path) -> list[str]:
    return (folder / "index.m3u8").read_text().splitlines()


def whole(folder: Path) -> bytes:
    """Return what a player has appended by now; FFmpeg itself would wait for the end of the playlist."""
    lines = playlist(folder)
    return b"".join((folder / name).read_bytes() for name in ["init.mp4", *(one for one in lines if one[0] != "#")])


def test_each_part_can_be_played_before_the_next_one_is_made(tmp_path: Path) -> None:
    place = DiskLiveFolder([tmp_path / "live"])
    reports: list[Live] = []
    seen: list[int] = []

    def published(segment: Segment) -> None:
        live.add(segment)
        if segment.frames:
            until(lambda: len(reports) == len(seen) + 1)
            (tmp_path / "early.mp4").write_bytes(whole(tmp_path / "live"))
            seen.append(len(decoded(str(tmp_path / "early.mp4"))[0]))

    with (
        video(tmp_path / "a.mp4", 25.0, COUNTS) as writer,
        Publisher(place, writer, 1, report=reports.append) as live,
    ):
        artifact = write(writer, COUNTS, published)
    frames, times, _ = decoded(str(tmp_path / "live" / "index.m3u8"))

    assert seen == [9, 14, 21]
    assert frames == decoded(str(artifact.path))[0]
    assert times[-1] == pytest.approx(20 / 25)
    assert [(len(one.parts), one.ended) for one in reports] == [(1, False), (2, False), (3, False), (3, True)]
    spans = [(part.begins, part.seconds) for part in reports[-1].parts]
    assert spans == [(0, 0.36), (0.36, 0.2), (0.56, 0.28)]
    assert live.warnings == ()


def test_the_seconds_of_many_parts_are_round_and_do_not_drift(tmp_path: Path) -> None:
    counts, reports = (29, 4, 28, *[7] * 12), list[Live]()
    place = DiskLiveFolder([tmp_path / "live"])
    with video(tmp_path / "a.mp4", 25.0, counts) as writer, Publisher(place, writer, 2, report=reports.append) as live:
        write(writer, counts, live.add)

    numbers = [number for one in reports for part in one.parts for number in (part.begins, part.seconds, one.seconds)]
    assert all(len(repr(number)) <= 4 for number in numbers), "hundredths, at 25 frames per second"
    # In floats, 1.16 + 0.16 + 1.12 and so on would show as 1.3199999999999998.
    begins = [round(sum(counts[:index]) / 25, 2) for index in range(len(counts))]
    assert [part.begins for part in reports[-1].parts] == begins


def test_the_playlist_says_what_players_need_to_know(tmp_path: Path) -> None:
    place = DiskLiveFolder([tmp_path / "live"])
    with video(tmp_path / "a.mp4", 25.0, COUNTS) as writer, Publisher(place, writer, 1) as live:
        write(writer, COUNTS, live.add)

    assert playlist(tmp_path / "live") == [
        "#EXTM3U",
        "#EXT-X-VERSION:7",
        "#EXT-X-TARGETDURATION:1",
        "#EXT-X-MEDIA-SEQUENCE:0",
        "#EXT-X-PLAYLIST-TYPE:EVENT",
        "#EXT-X-INDEPENDENT-SEGMENTS",
        "#EXT-X-START:TIME-OFFSET=0",
        '#EXT-X-MAP:URI="init.mp4"',
        "#EXTINF:0.360000,",
        "part-00000.m4s",
        "#EXTINF:0.200000,",
        "part-00001.m4s",
        "#EXTINF:0.280000,",
        "part-00002.m4s",
        "#EXT-X-ENDLIST",
    ]


@pytest.mark.parametrize("remove", [False, True])
def test_a_failed_video_ends_its_playlist_or_takes_it_away(tmp_path: Path, remove: bool) -> None:
    with video(tmp_path / "a.mp4", 25.0, COUNTS) as writer:
        live = Publisher(DiskLiveFolder([tmp_path / "live"]), writer, 1, remove=remove)

        def fail() -> None:
            with live:
                write(writer, COUNTS[:1], live.add)
                raise RuntimeError("window 2")

        with pytest.raises(RuntimeError, match="window 2"):
            fail()

    if remove:
        assert not (tmp_path / "live").exists()
        assert live.address is None
    else:
        assert playlist(tmp_path / "live")[-1] == "#EXT-X-ENDLIST"
        assert len(decoded(str(tmp_path / "live" / "index.m3u8"))[0]) == 9


class Full(DiskLiveFolder):
    """Has room for the first part."""

    def part(self, name: str, content: bytes, media_type: str) -> str:
        if name == "part-00001.m4s":
            raise SinkError("the live folder cannot be written to: No space left on device", field="live")
        return super().part(name, content, media_type)


def test_a_part_that_cannot_be_stored_ends_the_playlist_and_not_the_video(tmp_path: Path) -> None:
    place = Full([tmp_path / "live"])
    with video(tmp_path / "a.mp4", 25.0, COUNTS) as writer, Publisher(place, writer, 1) as live:
        artifact = write(writer, COUNTS, live.add)

    assert artifact.frames == 21
    assert live.warnings == (
        "the live playlist ends after 0.36 s: the live folder cannot be written to: No space left on device",
    )
    assert playlist(tmp_path / "live")[-2:] == ["part-00000.m4s", "#EXT-X-ENDLIST"]


class Stalled(DiskLiveFolder):
    """Stores nothing until `free` is set."""

    free = threading.Event()

    def part(self, name: str, content: bytes, media_type: str) -> str:
        assert self.free.wait(20)
        return super().part(name, content, media_type)


def test_a_slow_place_does_not_delay_the_video(tmp_path: Path) -> None:
    place = Stalled([tmp_path / "live"])
    with video(tmp_path / "a.mp4", 25.0, COUNTS) as writer, Publisher(place, writer, 1) as live:
        write(writer, COUNTS, live.add)
        assert not (tmp_path / "live").exists()
        place.free.set()

    assert len(decoded(str(tmp_path / "live" / "index.m3u8"))[0]) == 21


def test_sound_behind_the_last_frame_is_a_part_of_its_own(tmp_path: Path) -> None:
    counts = (9, 0)
    reports: list[Live] = []
    place = DiskLiveFolder([tmp_path / "live"])
    with (
        video(tmp_path / "a.mp4", 25.0, counts) as writer,
        Publisher(place, writer, 1, report=reports.append) as live,
    ):
        artifact = write(writer, counts, live.add)
    sound, wanted = (decoded(str(path))[2] for path in (tmp_path / "live" / "index.m3u8", artifact.path))

    assert len(reports[-1].parts) == 2
    assert (sound[: len(wanted)] == wanted).all()


def test_nothing_is_written_for_a_video_that_nobody_wants_early(tmp_path: Path) -> None:
    with video(tmp_path / "a.mp4", 25.0, COUNTS) as writer, Publisher(None, writer, 1) as live:
        write(writer, COUNTS, live.add)

    assert live.address is None
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_a_failed_video_does_not_wait_for_a_place_that_is_stuck(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.stages.publish._GRACE", 0.1)
    reports: list[Live] = []
    stuck = threading.Event()

    class Stuck(DiskLiveFolder):
        def part(self, name: str, content: bytes, media_type: str) -> str:
            assert stuck.wait(20)
            return super().part(name, content, media_type)

    with video(tmp_path / "a.mp4", 25.0, COUNTS) as writer:
        live = Publisher(Stuck([tmp_path / "live"]), writer, 1, report=reports.append)

        def fail() -> None:
            with live:
                write(writer, COUNTS[:1], live.add)
                raise RuntimeError("window 2")

        began = time.monotonic()
        with pytest.raises(RuntimeError, match="window 2"):
            fail()
        assert time.monotonic() - began < 5
    stuck.set()
    until(lambda: (tmp_path / "live" / "index.m3u8").exists() and playlist(tmp_path / "live")[-1] == "#EXT-X-ENDLIST")
    assert reports == []
