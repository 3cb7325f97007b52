"""The MP4 is what it says: length, colours, sound, provenance, and the same bytes each time."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest
from full_disk import file_limit

from engine.data import Frames
from engine.errors import ConfigError, RequestError, SinkError
from engine.media.segments import dump, load
from engine.stages.write import VideoOptions, Writer, read_provenance

SIZE = (64, 48)


def pictures(count: int) -> npt.NDArray[np.uint8]:
    frames = np.empty((count, SIZE[1], SIZE[0], 3), np.uint8)
    for index in range(count):
        frames[index] = (200, 30 + index, 60)
        frames[index, 8:24, index : index + 16] = (20, 220, 90)
    return frames


def tone(seconds: float) -> npt.NDArray[np.float32]:
    samples = 0.5 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * 48_000)) / 48_000)
    return np.repeat(samples[:, None], 2, axis=1).astype(np.float32)


def make(path: Path, count: int = 20, fps: float = 25.0, crf: int = 18) -> Path:
    sound = tone(count / fps)
    with Writer(path, SIZE, fps, sound, VideoOptions(crf=crf), metadata={"seed": 1}) as writer:
        writer.add(Frames(pictures(count)[: count // 2], fps))
        writer.add(Frames(pictures(count)[count // 2 :], fps))
        writer.finish()
    return path


def decoded_sound(path: Path) -> npt.NDArray[np.float32]:
    with av.open(str(path)) as file:
        return np.concatenate([frame.to_ndarray().T for frame in file.decode(audio=0)]).astype(np.float32)


def test_artifact_says_what_was_written(tmp_path: Path) -> None:
    with Writer(tmp_path / "a.mp4", SIZE, 12.5, metadata={"seed": 1}, filename="x.mp4") as writer:
        writer.add(Frames(pictures(5), 12.5))
        artifact = writer.finish()

    assert artifact.path == tmp_path / "a.mp4"
    assert (artifact.frames, artifact.seconds, artifact.media_type) == (5, 0.4, "video/mp4")
    assert (artifact.filename, dict(artifact.metadata)) == ("x.mp4", {"seed": 1})


@pytest.mark.parametrize(
    ("fps", "rate"), [(25.0, (25, 1)), (12.5, (25, 2)), (24000 / 1001, (24000, 1001)), (8, (8, 1))]
)
def test_frames_and_sound_are_as_long_as_asked(tmp_path: Path, fps: float, rate: tuple[int, int]) -> None:
    path = make(tmp_path / "a.mp4", 21, fps)

    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        assert stream.average_rate is not None
        assert (stream.average_rate.numerator, stream.average_rate.denominator) == rate
        assert sum(1 for _ in file.decode(stream)) == 21
        # FFmpeg may round the last AAC block up by a few samples.
        assert abs((file.streams.audio[0].duration or 0) - 21 / fps * 48_000) <= 6
    assert abs(len(decoded_sound(path)) - 21 / fps * 48_000) <= 48_000 / fps


def test_video_is_h264_in_yuv420p_with_aac_and_its_index_in_front(tmp_path: Path) -> None:
    path = make(tmp_path / "a.mp4")

    with av.open(str(path)) as file:
        video, audio = file.streams.video[0], file.streams.audio[0]
        assert (video.codec_context.name, video.pix_fmt, audio.codec_context.name) == ("h264", "yuv420p", "aac")
        assert (video.width, video.height, audio.rate, audio.channels) == (*SIZE, 48_000, 2)
    content = path.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")


def test_colors_come_back(tmp_path: Path) -> None:
    path = make(tmp_path / "a.mp4", crf=4)

    with av.open(str(path)) as file:
        frame = next(frame for index, frame in enumerate(file.decode(video=0)) if index == 10)
        assert int(frame.colorspace) == 1
        shown = frame.to_ndarray(format="rgb24").astype(int)
    # Chroma is stored at half the size; away from edges two levels are the rounding of limited-range YUV.
    assert np.abs(shown[16, 18] - (20, 220, 90)).max() <= 3
    assert np.abs(shown[40, 50] - (200, 40, 60)).max() <= 3


def test_sound_starts_with_the_first_frame(tmp_path: Path) -> None:
    sound = decoded_sound(make(tmp_path / "a.mp4"))
    wanted = tone(0.8)[:, 0]

    # AAC is lossy, and its first block sees silence before the tone.
    assert np.abs(sound[4096 : len(wanted) - 4096, 0] - wanted[4096:-4096]).max() < 0.05


def test_without_voices_there_is_a_silent_track(tmp_path: Path) -> None:
    with Writer(tmp_path / "a.mp4", SIZE, 25) as writer:
        writer.add(Frames(pictures(10), 25))
        writer.finish()

    sound = decoded_sound(tmp_path / "a.mp4")
    assert len(sound) >= 0.4 * 48_000
    assert not sound.any()


def test_longer_sound_is_cut_and_shorter_followed_by_silence(tmp_path: Path) -> None:
    for name, seconds in (("long.mp4", 3.0), ("short.mp4", 0.2)):
        with Writer(tmp_path / name, SIZE, 25, tone(seconds)) as writer:
            writer.add(Frames(pictures(25), 25))
            writer.finish()

        sound = decoded_sound(tmp_path / name)
        assert abs(len(sound) - 48_000) <= 1920
    assert np.abs(sound[14_000:]).max() < 1e-3


SCRIPT = """
    import os, sys
    from pathlib import Path
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    sys.path.insert(0, sys.argv[2])
    from test_write import make
    make(Path(sys.argv[1]))
"""


def test_bytes_depend_on_neither_process_nor_cores_nor_stale_memory(tmp_path: Path) -> None:
    first = make(tmp_path / "a.mp4")
    root = Path(__file__).parents[2]
    arguments = [
        sys.executable,
        "-c",
        textwrap.dedent(SCRIPT),
        str(tmp_path / "b.mp4"),
        str(Path(__file__).parent),
    ]
    subprocess.run(
        arguments,
        check=True,
        cwd=root,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, (root, root / "tests" / "support"))),
            "TZ": "Asia/Tokyo",
            "MALLOC_PERTURB_": "85",
        },
    )

    assert first.read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_provenance_comes_back_whole(tmp_path: Path) -> None:
    provenance = {"prompt": 'Two "people", ${x} = ü 日本', "steps": 4, "long": "x" * 200_000, "list": [1.5, None]}
    with Writer(tmp_path / "a.mp4", SIZE, 25, metadata=provenance) as writer:
        writer.add(Frames(pictures(2), 25))
        writer.finish()

    assert read_provenance(tmp_path / "a.mp4") == provenance


def test_video_without_provenance_is_an_error(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as file:
        file.metadata["comment"] = '{"other": 1}'
        stream = file.add_stream("libx264", rate=25)
        stream.width, stream.height = SIZE
        picture = av.VideoFrame.from_ndarray(pictures(1)[0], format="rgb24")
        file.mux([*stream.encode(picture), *stream.encode(None)])

    with pytest.raises(RequestError, match="has no provenance"):
        read_provenance(tmp_path / "a.mp4")


@pytest.mark.parametrize("content", [None, b"", b"no video"])
def test_provenance_of_no_video_is_an_error(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "a.mp4").write_bytes(content)

    with pytest.raises(RequestError, match="cannot be read"):
        read_provenance(tmp_path / "a.mp4")


def test_writer_left_early_leaves_no_file(tmp_path: Path) -> None:
    def stop() -> None:
        with Writer(tmp_path / "a.mp4", SIZE, 25) as writer:
            writer.add(Frames(pictures(4), 25))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()
    assert list(tmp_path.iterdir()) == []


def test_disk_that_is_full_at_the_first_byte_leaves_no_file_and_none_open(tmp_path: Path) -> None:
    def fill() -> None:
        with Writer(tmp_path / "a.mp4", SIZE, 25) as writer:
            writer.add(Frames(pictures(20), 25))
            writer.end_segment()

    (tmp_path / ".a.mp4.segments").symlink_to("/dev/full")
    with pytest.raises(SinkError, match="No space left on device"):
        fill()
    assert list(tmp_path.iterdir()) == []
    # Before anything is collected, and while the error still holds the frames of what failed.
    assert "/dev/full" not in [str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]


@pytest.mark.parametrize("most", [0, 1000, 65_536])
def test_full_disk_is_a_sink_error_and_leaves_no_file(most: int, tmp_path: Path) -> None:
    def fill() -> None:
        noise = np.random.default_rng(0).integers(0, 255, (40, *SIZE[::-1], 3), np.uint8)
        with Writer(tmp_path / "a.mp4", SIZE, 25) as writer:
            for _ in range(5):
                writer.add(Frames(noise, 25))
            writer.finish()

    with file_limit(most), pytest.raises(SinkError, match="cannot be written") as caught:
        fill()

    assert "space" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fps", [25.0, 3.0, 100.0])
@pytest.mark.parametrize("preset", ["medium", "ultrafast"])
def test_segments_of_any_length_make_one_video_and_can_be_taken_over(fps: float, preset: str, tmp_path: Path) -> None:
    counts = (7, 1, 1, 0, 2, 30)
    frames = pictures(sum(counts))
    sound, options = tone(sum(counts) / fps), VideoOptions(preset=preset, crf=4)
    ends = list(np.cumsum(counts))
    with Writer(tmp_path / "a.mp4", SIZE, fps, sound, options) as writer:
        segments = []
        for begin, end in zip([0, *ends], ends, strict=False):
            writer.add(Frames(frames[begin:end], fps))
            segments.append(writer.end_segment(last=end == ends[-1]))
        writer.finish()
    with Writer(tmp_path / "b.mp4", SIZE, fps, sound, options) as writer:
        for segment in segments[:-1]:
            writer.take_over(load(dump(segment)))
        writer.add(Frames(frames[ends[-2] :], fps))
        assert writer.end_segment(last=True) == segments[-1]
        writer.finish()

    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    assert [segment.frames for segment in segments] == list(counts)
    with av.open(str(tmp_path / "a.mp4")) as file:
        packets = [packet for packet in file.demux(video=0) if packet.dts is not None]
        times = [packet.dts or 0 for packet in packets]
        assert times == sorted(set(times))
        assert sum(packet.is_keyframe for packet in packets) == 5
    with av.open(str(tmp_path / "a.mp4")) as file:
        shown = [frame.to_ndarray(format="rgb24").astype(int) for frame in file.decode(video=0)]
    assert len(shown) == len(frames)
    assert all(np.abs(one[40, 50] - frame[40, 50]).max() <= 4 for one, frame in zip(shown, frames, strict=True))


def test_a_segment_that_is_cut_short_or_foreign_is_refused(tmp_path: Path) -> None:
    with Writer(tmp_path / "a.mp4", SIZE, 25) as writer:
        writer.add(Frames(pictures(4), 25))
        content = dump(writer.end_segment())
    assert load(content).frames == 4
    for bad in (
        content[:-1],
        content[:20],
        b"",
        b"{}\n",
        b"[]\n",
        b'{"segment": 1, "tracks": [[], []]}\n',
        b"\xff" * 40,
    ):
        with pytest.raises(ValueError):
            load(bad)


def test_facts_found_while_frames_are_made_are_in_the_provenance(tmp_path: Path) -> None:
    with Writer(tmp_path / "a.mp4", SIZE, 25, metadata={"seed": 1}) as writer:
        writer.add(Frames(pictures(2), 25))
        artifact = writer.finish({"report": [1]})
    assert read_provenance(artifact.path) == artifact.metadata == {"seed": 1, "report": [1]}


def test_missing_folder_is_a_sink_error(tmp_path: Path) -> None:
    with pytest.raises(SinkError, match="No such file"):
        Writer(tmp_path / "no" / "a.mp4", SIZE, 25)


def test_odd_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="63 x 48"):
        Writer(tmp_path / "a.mp4", (63, 48), 25)


def test_unknown_preset_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        Writer(tmp_path / "a.mp4", SIZE, 25, options=VideoOptions(preset="quickest"))
    assert caught.value.field == "video"
    assert list(tmp_path.iterdir()) == []


def test_frames_of_another_size_are_a_bug(tmp_path: Path) -> None:
    with Writer(tmp_path / "a.mp4", (32, 32), 25) as writer, pytest.raises(ValueError, match="do not fit"):
        writer.add(Frames(pictures(1), 25))


def test_lower_crf_gives_more_bytes(tmp_path: Path) -> None:
    assert make(tmp_path / "a.mp4", crf=4).stat().st_size > make(tmp_path / "b.mp4", crf=40).stat().st_size


@pytest.mark.parametrize("count", [7, 33, 100])
def test_sound_ends_within_a_frame_where_a_frame_is_shorter_than_an_aac_packet(tmp_path: Path, count: int) -> None:
    seconds = len(decoded_sound(make(tmp_path / "a.mp4", count, 60.0))) / 48_000
    assert abs(seconds - count / 60) <= 1 / 60
