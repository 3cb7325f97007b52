"""Voices are decoded, levelled and laid on one time axis; the sound track keeps what was given."""

from __future__ import annotations

import tracemalloc
import wave
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pyloudnorm
import pytest
from safetensors.numpy import load_file

from engine.errors import RequestError
from engine.media.audio import VOICE_RATE, decode, read_sounds, set_loudness, voice_spans
from engine.media.loudness import integrated_loudness
from engine.media.pieces import Samples
from engine.media.tracks import inspect
from engine.stages.plan import voices_end

FIELD = "request.speakers[0].audio"
GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "loudness.safetensors")


Spans = Sequence[tuple[float, float]]


def measure_seconds(path: Path, *, max_seconds: float | None = None) -> float:
    return inspect(path, field=FIELD, max_seconds=max_seconds).cut.seconds


def read(files: Sequence[Path | None], spans: Spans, seconds: float) -> tuple[tuple[Samples, ...], Samples]:
    cuts = [None if file is None else inspect(file, field=FIELD).cut for file in files]
    result = read_sounds(files, cuts, spans, seconds)
    return result.voices, result.track


def read_voices(files: Sequence[Path | None], spans: Spans, seconds: float) -> tuple[Samples, ...]:
    return read(files, spans, seconds)[0]


def read_sound(files: Sequence[Path | None], spans: Spans, seconds: float) -> Samples:
    return read(files, spans, seconds)[1]


def tone(seconds: float, rate: int = 16_000, channels: int = 1, hertz: float = 440.0) -> npt.NDArray[np.float64]:
    wave_form = 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)
    return np.repeat(wave_form[:, None], channels, axis=1)


def write_wav(path: Path, samples: npt.NDArray[np.float64], rate: int = 16_000) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(samples.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((samples * 32767).astype("<i2").tobytes())
    return path


def write_with_av(path: Path, codec: str, samples: npt.NDArray[np.float64], rate: int, picture: bool = False) -> Path:
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25) if picture else None
        if video is not None:
            video.width = video.height = 32
        stream = container.add_stream(codec, rate=rate, layout="mono" if samples.shape[1] == 1 else "stereo")
        assert isinstance(stream, av.AudioStream)
        if video is not None:
            frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
            container.mux([*video.encode(frame), *video.encode(None)])
        packed = np.ascontiguousarray(samples.astype(np.float32).reshape(1, -1))
        sound = av.AudioFrame.from_ndarray(packed, format="flt", layout="mono" if samples.shape[1] == 1 else "stereo")
        sound.sample_rate = rate
        container.mux([*stream.encode(sound), *stream.encode(None)])
    return path


@pytest.mark.parametrize(
    ("name", "codec", "rate"),
    [("a.flac", "flac", 44_100), ("a.m4a", "aac", 48_000), ("a.ogg", "libopus", 48_000), ("a.mp3", "mp3", 22_050)],
)
def test_any_container_is_decoded(tmp_path: Path, name: str, codec: str, rate: int) -> None:
    path = write_with_av(tmp_path / name, codec, tone(0.5, rate, 2), rate)
    voice = decode(path, 16_000, "mono")

    # Codecs pad to their frames; a frame of MP3 at 22 kHz lasts 26 ms.
    assert len(voice) / 16_000 == pytest.approx(0.5, abs=0.055)
    assert measure_seconds(path) == pytest.approx(len(voice) / 16_000, abs=1e-3)
    middle = voice[2000:6000].astype(np.float64)
    assert np.abs(middle).max() == pytest.approx(0.5, abs=0.05)
    assert np.abs(np.fft.rfft(middle)).argmax() == 110


def test_audio_of_a_video_is_decoded(tmp_path: Path) -> None:
    path = write_with_av(tmp_path / "a.mp4", "aac", tone(0.5, 48_000, 2), 48_000, picture=True)

    assert np.abs(decode(path, 16_000, "mono")).max() == pytest.approx(0.5, abs=0.05)


def test_mono_is_the_mean_of_the_channels(tmp_path: Path) -> None:
    samples = np.stack([np.full(800, 0.5), np.full(800, -0.25)], axis=1)
    path = write_wav(tmp_path / "a.wav", samples)

    assert decode(path, 16_000, "mono") == pytest.approx(0.125, abs=1e-4)


def test_stereo_of_a_mono_file_keeps_its_level(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", np.full((800, 1), 0.5), 48_000)
    sound = decode(path, 48_000, "stereo")

    assert sound.shape == (800, 2)
    assert sound.dtype == np.float32
    assert sound == pytest.approx(0.5, abs=1e-4)


def test_more_channels_than_two_are_mixed(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", tone(0.1, 48_000, 6), 48_000)

    assert decode(path, 48_000, "stereo").shape == (4800, 2)


def test_resampling_keeps_length_and_pitch(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", tone(1.0, 44_100), 44_100)
    voice = decode(path, 16_000, "mono")

    assert len(voice) == 16_000
    assert np.abs(voice - tone(1.0)[:, 0])[200:-200].max() < 1e-3


def normalized(voice: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return set_loudness(voice, integrated_loudness(voice, VOICE_RATE))


@pytest.mark.parametrize("name", ["loud", "quiet", "silent"])
def test_loudness_is_that_of_the_reference(name: str) -> None:
    assert integrated_loudness(GOLDEN[f"{name}.in"], VOICE_RATE) == pytest.approx(
        float(GOLDEN[f"{name}.lufs"]), abs=1e-9
    )
    assert np.abs(normalized(GOLDEN[f"{name}.in"]) - GOLDEN[f"{name}.out"]).max() < 1e-7


@pytest.mark.parametrize(("samples", "rate"), [(3_000, 16_000), (200_001, 16_000), (150_000, 48_000)])
def test_loudness_is_that_of_pyloudnorm_to_the_last_bit(samples: int, rate: int) -> None:
    noise = np.random.default_rng(0).standard_normal(samples) * np.sin(np.arange(samples) / 9_000) ** 4
    voice = (0.3 * noise).astype(np.float32)
    repeated = np.tile(voice, 3) if samples < 0.4 * rate else voice

    assert integrated_loudness(voice, rate) == pyloudnorm.Meter(rate).integrated_loudness(repeated)


def test_clip_shorter_than_the_meters_block_is_levelled() -> None:
    short = tone(0.1)[:, 0].astype(np.float32)
    long = tone(1.0)[:, 0].astype(np.float32)

    assert len(normalized(short)) == 1600
    # The same tone, so the same gain, but for the seams of the repetition and the meter's filter settling.
    assert np.abs(normalized(short)).max() == pytest.approx(np.abs(normalized(long)).max(), rel=0.05)


def test_single_sample_survives_levelling() -> None:
    assert len(normalized(np.array([0.5], np.float32))) == 1


def test_voices_begin_together_or_one_after_the_other() -> None:
    assert voice_spans((2.0, 0.0, 1.0), "para") == ((0, 2), (0, 0), (0, 1))
    assert voice_spans((2.0, 0.0, 1.0), "add") == ((0, 2), (2, 2), (2, 3))
    assert voice_spans((2.0, 0.0, 1.0), "para", (0.5, 0, 4.0)) == ((0.5, 2.5), (0, 0), (4, 5))
    assert voice_spans((2.0, 0.0, 1.0), "add", (0.5, 0, 4.0)) == ((0.5, 2.5), (2.5, 2.5), (6.5, 7.5))
    assert voices_end(voice_spans((2.0, 0.0, 1.0), "para")) == 2
    assert voices_end(voice_spans((2.0, 0.0, 1.0), "add")) == 3
    assert voices_end(voice_spans((), "add")) == 0
    assert voices_end(voice_spans((2.0, 0.0, 1.0), "para", (0.5, 0, 4.0))) == 5


def test_voices_lie_on_one_axis_with_silence_around(tmp_path: Path) -> None:
    files = [write_wav(tmp_path / "a.wav", tone(0.5)), None, write_wav(tmp_path / "b.wav", tone(0.25))]
    first, silent, second = read_voices(files, voice_spans((0.5, 0, 0.25), "add"), 1.0)

    assert len(first) == len(silent) == len(second) == 16_000
    assert first[:8000].any()
    assert not first[8000:].any()
    assert not silent.any()
    assert not second[:8000].any()
    assert second[8000:12_000].any()
    assert not second[12_000:].any()


def test_voices_are_cut_at_the_end(tmp_path: Path) -> None:
    files = [write_wav(tmp_path / "a.wav", tone(0.5)), write_wav(tmp_path / "b.wav", tone(0.5))]
    first, second = read_voices(files, voice_spans((0.5, 0.5), "add"), 0.4)

    assert len(first) == len(second) == 6400
    assert first.any()
    assert not second.any()


def test_each_voice_is_brought_to_the_loudness_of_speech(tmp_path: Path) -> None:
    quiet = write_wav(tmp_path / "a.wav", tone(1.0) * 0.02)
    (voice,) = read_voices([quiet], [(0, 1)], 1.0)

    assert integrated_loudness(voice, VOICE_RATE) == pytest.approx(-23, abs=0.1)


@pytest.mark.parametrize("seconds", [0.4, 1.0 / 3, 1.7])
def test_sound_track_has_exactly_the_videos_length(tmp_path: Path, seconds: float) -> None:
    path = write_wav(tmp_path / "a.wav", tone(1.0, 44_100), 44_100)

    sound = read_sound([path], [(0, 1)], seconds)
    assert sound.shape == (round(seconds * 48_000), 2)
    assert sound.dtype == np.float32


def test_sound_track_is_the_sum_at_the_given_loudness(tmp_path: Path) -> None:
    rate = 48_000
    files = [write_wav(tmp_path / f"{i}.wav", tone(0.5, rate) * level, rate) for i, level in ((0, 0.2), (1, 0.4))]
    sound = read_sound(files, voice_spans((0.5, 0.5), "para"), 0.5)

    assert np.abs(sound[:, 0] - tone(0.5, rate)[:, 0] * 0.6).max() < 1e-3


def test_sound_track_that_would_clip_is_scaled_as_a_whole(tmp_path: Path) -> None:
    files = [write_wav(tmp_path / f"{i}.wav", tone(0.5, 48_000) * 1.9, 48_000) for i in range(2)]
    sound = read_sound(files, voice_spans((0.5, 0.5), "para"), 0.5)

    assert np.abs(sound).max() == pytest.approx(1, abs=1e-6)
    assert np.abs(sound[:, 0] - tone(0.5, 48_000)[:, 0] * 2).max() < 1e-3


def test_silent_sound_track_is_zeros() -> None:
    assert not read_sound([None], [(0, 0)], 0.2).any()


def test_memory_of_the_sound_track_is_one_mix(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", tone(20.0))
    read_sound([path], [(0, 1)], 0.1)

    tracemalloc.start()
    voices, sound = read([path, path], voice_spans((20.0, 20.0), "para"), 20.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    # Each voice at 16 kHz as it is decoded, levelled, measured (float64, a few times) and in its place.
    assert peak < sound.nbytes + 3 * sum(voice.nbytes for voice in voices) + 12 * voices[0].nbytes


def test_memory_of_voices_is_far_below_a_frame_of_video(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", tone(20.0))
    read_voices([path], [(0, 1)], 0.1)

    tracemalloc.start()
    read_voices([path, path], voice_spans((20.0, 20.0), "para"), 20.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert peak < 20 * 25 * 48 * 1024


def test_file_without_audio_track_is_refused(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width = stream.height = 32
        frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
        container.mux([*stream.encode(frame), *stream.encode(None)])

    with pytest.raises(RequestError, match="no audio track") as caught:
        measure_seconds(tmp_path / "a.mp4")
    assert caught.value.field == FIELD


def test_audio_without_samples_is_refused(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", tone(0))

    with pytest.raises(RequestError, match="no samples"):
        measure_seconds(path)


def test_zero_bytes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.wav").touch()

    with pytest.raises(RequestError, match="empty"):
        measure_seconds(tmp_path / "a.wav")


def test_text_is_not_audio(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_text("la la la")

    with pytest.raises(RequestError, match="cannot be decoded"):
        measure_seconds(tmp_path / "a.wav")


def test_samples_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    samples = np.array([[0.0], [np.nan], [1.0]])
    path = write_with_av(tmp_path / "a.wav", "pcm_f32le", samples, 16_000)

    with pytest.raises(RequestError, match="not finite"):
        decode(path, 16_000, "mono")


def test_voice_beyond_the_limit_is_refused(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", tone(0.5))

    with pytest.raises(RequestError, match=r"longer than 0\.25 seconds"):
        measure_seconds(path, max_seconds=0.25)


def test_playlist_opens_no_other_file(tmp_path: Path) -> None:
    write_with_av(tmp_path / "secret.ts", "aac", tone(0.5, 48_000, 2), 48_000)
    lines = ["#EXTM3U", "#EXT-X-TARGETDURATION:1", "#EXTINF:0.5,", "secret.ts", "#EXT-X-ENDLIST"]
    (tmp_path / "a.m3u8").write_text("\n".join(lines))

    with pytest.raises(RequestError):
        measure_seconds(tmp_path / "a.m3u8")


def test_name_with_a_pattern_in_it_is_a_name(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "voice%03d:x.wav", tone(0.1))

    assert measure_seconds(path) == pytest.approx(0.1)
