"""Parts of a published video: together they are the file, and each continues the one before."""

from __future__ import annotations

import struct
from pathlib import Path

import av
import numpy as np
import pytest
from segments import SIZE, decoded, video, write

from engine.media.fragments import Fragmenter
from engine.media.segments import Segment

COUNTS = (9, 5, 0, 1, 13)


def made(folder: Path, fps: float = 25.0, preset: str = "medium") -> tuple[Path, bytes, list[bytes]]:
    """Return the file, the init part and a part for each window that has frames."""
    segments: list[Segment] = []
    with video(folder / "a.mp4", fps, COUNTS, preset) as writer:
        artifact = write(writer, COUNTS, segments.append)
        fragments = Fragmenter(SIZE, writer.rate, writer.options.x264, writer.options.audio_bitrate)
    assert segments[2].frames == 0
    parts = [fragments.part(0, segments[0]), fragments.part(1, segments[1])]
    parts += [fragments.part(2, segments[2], segments[3]), fragments.part(3, segments[4])]
    return artifact.path, fragments.init, parts


def boxes(content: bytes, *names: str) -> list[bytes]:
    """Return the contents of the boxes at the path `names`."""
    found, start = [], 0
    while start < len(content):
        size, name = struct.unpack_from(">I4s", content, start)
        if name.decode() == names[0]:
            inner = content[start + 8 : start + size]
            found += boxes(inner, *names[1:]) if len(names) > 1 else [inner]
        start += size
    return found


@pytest.mark.parametrize(
    ("fps", "preset"), [(25.0, "medium"), (25.0, "ultrafast"), (8.0, "fast"), (24000 / 1001, "fast"), (60.0, "fast")]
)
def test_all_parts_together_show_the_frames_of_the_file_at_their_times(tmp_path: Path, fps: float, preset: str) -> None:
    path, init, parts = made(tmp_path, fps, preset)
    (tmp_path / "parts.mp4").write_bytes(init + b"".join(parts))

    frames, times, sound = decoded(str(tmp_path / "parts.mp4"))
    wanted, wanted_times, wanted_sound = decoded(str(path))

    assert frames == wanted
    # The time bases of the two files differ.
    assert np.allclose(times, wanted_times, atol=1e-4)
    assert times[0] == 0
    length = len(wanted_sound)
    # The file cuts the last packet where the pictures end, a part ends with a packet.
    assert 0 <= len(sound) - length < 1024
    assert np.array_equal(sound[:length], wanted_sound)


def test_a_part_begins_with_a_key_frame_and_continues_the_times_of_the_part_before(tmp_path: Path) -> None:
    _, init, parts = made(tmp_path)
    ends: dict[str, int] = {}
    for part in parts:
        (tmp_path / "part.mp4").write_bytes(init + part)
        with av.open(str(tmp_path / "part.mp4")) as file:
            packets = [
                (packet.stream.type, packet.dts, packet.duration or 0, packet.is_keyframe)
                for packet in file.demux()
                if packet.dts is not None
            ]
        for kind in ("video", "audio"):
            own = [packet for packet in packets if packet[0] == kind]
            assert own[0][3]
            assert own[0][1] == ends.get(kind, own[0][1])
            ends[kind] = own[-1][1] + own[-1][2]


def test_parts_are_numbered_and_have_no_time_below_zero(tmp_path: Path) -> None:
    _, init, parts = made(tmp_path)
    numbers = [struct.unpack(">4xI", boxes(part, "moof", "mfhd")[0])[0] for part in parts]
    times = [struct.unpack(">4xQ", time)[0] for part in parts for time in boxes(part, "moof", "traf", "tfdt")]

    assert numbers == [1, 2, 3, 4]
    assert max(times) < 10 * 48_000
    # Edit lists take back what the times are later: two frames, and the encoder's priming.
    edits = [struct.unpack(">4xIIiI", edit)[:3] for edit in boxes(init, "moov", "trak", "edts", "elst")]
    assert edits == [(1, 0, 2 * 512), (1, 0, 1024)]


def test_the_same_segment_is_the_same_part(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    assert made(tmp_path / "one")[1:] == made(tmp_path / "two")[1:]
