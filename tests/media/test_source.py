"""Source videos of every rate, length, rotation and shape: which frame is shown when, and where a scene ends."""

from __future__ import annotations

import threading
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from source_videos import number_of, numbered, scene_frames, turn, write_source

from engine.data import SourceVideo
from engine.errors import Cancelled, RequestError
from engine.media.canvas import make_canvas
from engine.media.source import Decoding, SourceReader, find_cuts, survey

PIXELS = 2**26


def reader(path: Path, fps: float = 25.0, size: tuple[int, int] = (64, 48)) -> SourceReader:
    return SourceReader(of(path), make_canvas(size, (64, 48)), fps)


def of(path: Path) -> SourceVideo:
    return SourceVideo(path, (64, 48), 25.0, 1.0)


@pytest.mark.parametrize(
    ("source_fps", "fps", "expected"),
    [
        (25, 25.0, [0, 1, 2, 3, 4, 5, 6, 7]),
        (50, 25.0, [0, 2, 4, 6, 8, 10, 12, 14]),
        (12.5, 25.0, [0, 0, 1, 1, 2, 2, 3, 3]),
        (Fraction(30000, 1001), 25.0, [0, 1, 2, 3, 4, 6, 7, 8]),
        (25, 8.0, [0, 3, 6, 9, 12, 15, 18, 21]),
    ],
)
def test_the_frame_that_is_shown_at_a_time_is_used_at_any_rate(
    tmp_path: Path, source_fps: float, fps: float, expected: list[int]
) -> None:
    path = write_source(tmp_path / "a.mp4", numbered(32), source_fps)
    source = reader(path, fps)
    assert [number_of(frame) for frame in source.frames(0, 8)] == expected
    source.close()
    assert survey(path, max_pixels=PIXELS).source.fps == pytest.approx(float(source_fps), rel=0.01)


def test_frames_of_a_varying_rate_stay_until_the_next_one(tmp_path: Path) -> None:
    path = write_source(tmp_path / "a.mkv", numbered(4), times=[0.0, 0.04, 0.2, 0.24])
    assert [number_of(frame) for frame in reader(path).frames(0, 8)] == [0, 1, 1, 1, 1, 2, 3, 3]
    assert survey(path, max_pixels=PIXELS).source.seconds == pytest.approx(0.28, abs=0.1)


def test_the_last_frame_stays_and_an_earlier_one_is_decoded_again(tmp_path: Path) -> None:
    source = reader(write_source(tmp_path / "a.mp4", numbered(10)))
    assert [number_of(frame) for frame in source.frames(7, 5)] == [7, 8, 9, 9, 9]
    assert number_of(source.frame(2)) == 2
    # Of overlapping frames those in common are decoded once.
    assert [number_of(frame) for frame in source.frames(2, 3)] == [2, 3, 4]


def test_only_the_frames_of_one_window_are_in_memory(tmp_path: Path) -> None:
    source = reader(write_source(tmp_path / "a.mp4", np.tile(numbered(40), (5, 1, 1, 1))))
    for first in range(0, 190, 8):
        source.frames(first, 9)
        assert len(source._kept) <= 9


def test_a_turned_video_is_upright(tmp_path: Path) -> None:
    frames = np.zeros((3, 48, 64, 3), np.uint8)
    frames[:, :, 32:] = 255  # the right half is bright; turned clockwise, it is below
    path = turn(write_source(tmp_path / "a.mp4", frames))
    found = survey(path, max_pixels=PIXELS)
    assert found.source.size == (48, 64)
    assert found.first.shape == (64, 48, 3)
    assert found.first[:30].mean() < 10
    assert found.first[34:].mean() > 245


def test_pixels_that_are_not_square_become_square(tmp_path: Path) -> None:
    path = write_source(tmp_path / "a.mp4", numbered(3), aspect=Fraction(4, 3))
    assert survey(path, max_pixels=PIXELS).source.size == (85, 48)


def test_colours_arrive_as_they_were_encoded(tmp_path: Path) -> None:
    frames = scene_frames(3, 2)
    picture = survey(write_source(tmp_path / "a.mp4", frames), max_pixels=PIXELS).first
    assert np.abs(picture.astype(int) - frames[0]).mean() < 4


def test_a_cut_is_found_and_movement_and_a_flash_are_not(tmp_path: Path) -> None:
    one, other = scene_frames(3, 20), scene_frames(4, 20)
    assert find_cuts(of(write_source(tmp_path / "one.mp4", one)), score=10, until=9) == ()
    path = write_source(tmp_path / "two.mp4", np.concatenate([one[:13], other, one[:10]]))
    assert find_cuts(of(path), score=10, until=9) == pytest.approx((0.52, 1.32))
    assert find_cuts(of(path), score=10, until=1) == pytest.approx((0.52,))
    assert find_cuts(of(path), score=100, until=9) == ()
    # One white frame: its two sides are 0.04 s apart.
    flash = one.copy()
    flash[10] = 255
    assert len(find_cuts(of(write_source(tmp_path / "flash.mp4", flash)), score=10, until=9)) <= 1


def test_a_file_without_moving_pictures_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"no video at all")
    with pytest.raises(RequestError, match="cannot be decoded") as caught:
        survey(tmp_path / "a.mp4", max_pixels=PIXELS)
    assert (caught.value.field, caught.value.code) == ("request.video", "video_unreadable")
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    with pytest.raises(RequestError, match="one picture") as caught:
        survey(tmp_path / "a.png", max_pixels=PIXELS)
    assert "reference_image" in caught.value.hint
    sound = Path(__file__).parents[2] / "engine" / "examples" / "one.flac"
    with pytest.raises(RequestError, match="has no pictures"):
        survey(sound, max_pixels=PIXELS)


def test_frames_of_too_many_pixels_are_refused(tmp_path: Path) -> None:
    path = write_source(tmp_path / "a.mp4", numbered(3))
    with pytest.raises(RequestError, match="64 x 48") as caught:
        survey(path, max_pixels=64 * 48 - 1)
    assert caught.value.code == "picture_too_large"
    with pytest.raises(RequestError, match="64 x 48"):
        find_cuts(replace(of(path), max_pixels=64), score=10, until=9)


def test_later_frames_that_are_too_large_are_not_decoded(tmp_path: Path) -> None:
    # A stream whose header has the size of its first frames.
    small, large = numbered(3), numbered(3, size=(640, 480))
    path = tmp_path / "a.ts"
    with av.open(path, "w") as container:
        stream = container.add_stream("mpeg2video", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number, pixels in enumerate(small):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with av.open(tmp_path / "b.ts", "w") as container:
        stream = container.add_stream("mpeg2video", rate=25)
        stream.width, stream.height, stream.pix_fmt = 640, 480, "yuv420p"
        for number, pixels in enumerate(large):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    path.write_bytes(path.read_bytes() + (tmp_path / "b.ts").read_bytes())
    sizes = [{shown.frame.width for shown in Decoding(path, max_pixels=most)} for most in (PIXELS, 64 * 48)]
    assert sizes == [{64, 640}, {64}]


def test_a_file_that_breaks_off_is_used_as_far_as_it_goes(tmp_path: Path) -> None:
    path = write_source(tmp_path / "a.mkv", scene_frames(3, 40))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    found = survey(path, max_pixels=PIXELS).source
    assert 0.2 < found.seconds < 1.5
    assert reader(path, size=(160, 96)).frames(0, 40).shape == (40, 48, 64, 3)


def test_a_cancelled_survey_ends(tmp_path: Path) -> None:
    cancel = threading.Event()
    cancel.set()
    path = write_source(tmp_path / "a.mp4", numbered(3))
    with pytest.raises(Cancelled):
        survey(path, max_pixels=PIXELS, cancel=cancel)
    with pytest.raises(Cancelled):
        find_cuts(of(path), score=10, until=9, cancel=cancel)
