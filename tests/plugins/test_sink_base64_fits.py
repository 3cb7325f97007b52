"""A video that is too long for the answer is encoded once more, if that does not show, and said to be."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import av
import numpy as np
import pytest

from engine.data import Artifact, Frames
from engine.errors import SinkError
from engine.media.h264 import LEAST_PSNR, LEAST_SSIM, Likeness, shrink
from engine.stages.write import VideoOptions, Writer, read_provenance
from plugins.sinks.base64 import Base64Config, Base64Sink

SIZE = (160, 96)
COUNT = 100


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hundred frames of a picture that moves under a little noise, with sound."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[: SIZE[1], : SIZE[0]]
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    tone = np.sin(np.arange(48_000 * COUNT // 25) / 20).astype(np.float32) / 4
    options = VideoOptions(audio_bitrate=32_000)
    with Writer(path, SIZE, 25.0, np.stack([tone, tone], 1), options, metadata={"seed": 7}) as writer:
        for index in range(COUNT):
            wave = 128 + 60 * np.sin((x + 2 * index) / 9) + 40 * np.cos((y - index) / 7)
            noise = random.normal(0, 3, (SIZE[1], SIZE[0], 3))
            writer.add(Frames((wave[..., None] + noise).clip(0, 255).astype(np.uint8)[None], 25.0))
        writer.finish()
    return path


@pytest.fixture(scope="module")
def smaller(film: Path) -> tuple[Path, Likeness | None]:
    """The film in three fifths of its bytes."""
    path = film.with_name("smaller.mp4")
    return path, shrink(film, path, most(film))


def most(film: Path) -> int:
    return int(film.stat().st_size * 0.6) // 3 * 3


@pytest.fixture
def made(film: Path, tmp_path: Path) -> Artifact:
    path = tmp_path / "video.mp4"
    path.write_bytes(film.read_bytes())
    return Artifact(path, "video/mp4", COUNT / 25, COUNT)


def letters(size: float) -> int:
    return int(size) // 3 * 4


def pixels(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="gray") for frame in container.decode(video=0)]
    return np.stack(frames).astype(np.float64)


def sound(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.concatenate([frame.to_ndarray() for frame in container.decode(audio=0)], axis=1)


def test_a_video_that_fits_is_the_first_encoding(made: Artifact, film: Path) -> None:
    kept = Base64Sink(Base64Config(limit=letters(made.path.stat().st_size) + 4)).put(made)
    assert base64.b64decode(kept.content or "") == film.read_bytes()
    assert kept.warnings == ()


def test_a_video_that_is_a_little_too_long_is_encoded_again_and_said_to_be(
    made: Artifact, film: Path, smaller: tuple[Path, Likeness]
) -> None:
    size = film.stat().st_size
    kept = Base64Sink(Base64Config(limit=letters(most(film)))).put(made)

    content = base64.b64decode(kept.content or "")
    assert content == smaller[0].read_bytes(), "the same film gives other bytes"
    assert (kept.sha256, kept.bytes) == (hashlib.sha256(content).hexdigest(), len(content))
    (warning,) = kept.warnings
    assert f"the video of {size} bytes was too long for the answer" in warning
    assert f"encoded again to {len(content)} (PSNR" in warning
    assert list(made.path.parent.iterdir()) == []


def test_the_smaller_encoding_has_the_same_frames_sound_and_provenance(
    film: Path, smaller: tuple[Path, Likeness]
) -> None:
    path, likeness = smaller

    assert most(film) * 0.7 < path.stat().st_size <= most(film)
    one, two = pixels(film), pixels(path)
    assert len(two) == COUNT
    # The filter measures limited-range luma, this full-range grey: 255 / 219 apart, and rounded.
    assert likeness.psnr == pytest.approx(10 * np.log10(255**2 / ((one - two) ** 2).mean()), abs=2)
    assert likeness.psnr >= LEAST_PSNR
    assert LEAST_SSIM <= likeness.ssim < 1
    assert np.array_equal(sound(film), sound(path))
    assert read_provenance(path) == {"seed": 7}
    with av.open(str(film)) as first, av.open(str(path)) as second:
        times = [[packet.pts for packet in file.demux(video=0) if packet.pts is not None] for file in (first, second)]
        assert sorted(times[0]) == sorted(times[1])
        assert first.streams.video[0].average_rate == second.streams.video[0].average_rate
    assert sorted(found.name for found in path.parent.iterdir()) == ["film.mp4", "smaller.mp4"]


@pytest.mark.parametrize(
    ("share", "why"), [(0.36, r"encoded that small, it looks worse \(PSNR"), (0.01, "it cannot be encoded")]
)
def test_a_video_that_would_show_it_is_an_error_that_names_s3(share: float, why: str, made: Artifact) -> None:
    with pytest.raises(SinkError, match=why) as caught:
        Base64Sink(Base64Config(limit=letters(made.path.stat().st_size * share))).put(made)

    assert caught.value.code == "answer_too_large"
    assert "sink=s3" in caught.value.hint
    assert [path.name for path in made.path.parent.iterdir()] == ["video.mp4"]


def test_what_is_no_video_is_a_sink_error(tmp_path: Path) -> None:
    (tmp_path / "video.mp4").write_bytes(b"no video" * 100)
    with pytest.raises(SinkError, match="cannot be encoded again"):
        Base64Sink(Base64Config(limit=400)).put(Artifact(tmp_path / "video.mp4", "video/mp4", 1.0, 25))


@pytest.mark.parametrize(("psnr", "ssim", "holds"), [(38, 0.95, True), (37.9, 1, False), (50, 0.949, False)])
def test_quality_is_the_whole_and_its_worst_frame(psnr: float, ssim: float, holds: bool) -> None:
    assert Likeness(psnr, ssim).holds is holds


@pytest.mark.parametrize(("configured", "asked", "limit"), [(None, 7, 7), (5, 7, 5), (9, 7, 7)])
def test_the_narrower_limit_counts(configured: int | None, asked: int, limit: int) -> None:
    assert Base64Sink(Base64Config(limit=configured)).within(asked).limit == limit
