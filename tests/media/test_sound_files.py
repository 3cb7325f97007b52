"""Sound files as people have them: tags, damage, joints, tracks, channels, gaps and priming."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from sounds import FRAGMENTED, Samples, click, damage, join, tone, write

from engine.errors import Cancelled, RequestError
from engine.media.audio import SOUND_RATE, VOICE_RATE, Sounds, decode, read_sounds
from engine.media.tracks import Inspection, inspect
from engine.stages.write import read_provenance

FIELD = "request.speakers[0].audio"
ENGINE = Path(__file__).parents[2] / "engine"


def look(path: Path) -> Inspection:
    return inspect(path, field=FIELD, max_seconds=3600)


def read(path: Path, seconds: float | None = None) -> Sounds:
    cut = look(path).cut
    return read_sounds([path], [cut], [(0, cut.seconds)], cut.seconds if seconds is None else seconds)


def told(path: Path) -> str:
    return "\n".join([*look(path).warnings, *read(path).warnings])


def hertz(samples: Samples, rate: int = VOICE_RATE) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(spectrum.argmax()) * rate / len(samples)


def part(samples: Samples, begin: float, end: float, rate: int = VOICE_RATE) -> Samples:
    return samples[round(begin * rate) : round(end * rate)]


def level(samples: Samples) -> float:
    return float(np.sqrt(np.square(samples, dtype=np.float64).mean()))


# --- tags -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.wav", "pcm_s16le"),
        ("a.mp3", "mp3"),
        ("a.m4a", "aac"),
        ("a.mkv", "flac"),
        ("a.flac", "flac"),
        ("a.avi", "mp3"),
    ],
)
@pytest.mark.parametrize("encoding", ["cp1251", "gbk", "latin-1"])
def test_tags_in_any_encoding_are_no_reason_to_refuse_a_voice(
    tmp_path: Path, name: str, codec: str, encoding: str
) -> None:
    path = write(tmp_path / name, codec, tone(0.5, 48_000), tags={"title": "QQQQQQQQ"})
    word = {"cp1251": "Привет!!", "gbk": "数据数据", "latin-1": "Größeäöü"}[encoding].encode(encoding)
    content = path.read_bytes()
    places = content.count(b"QQQQQQQQ")
    path.write_bytes(content.replace(b"QQQQQQQQ", word))

    assert places
    assert read(path).voices[0].any()


def test_provenance_is_read_beside_a_tag_in_another_encoding(tmp_path: Path) -> None:
    provenance = '{"multitalk": {"format": 1}}'
    path = write(tmp_path / "a.mp4", "aac", tone(0.2, 48_000), tags={"title": "QQQQQQQQ", "comment": provenance})
    path.write_bytes(path.read_bytes().replace(b"QQQQQQQQ", "Größeäöü".encode("latin-1")))

    assert read_provenance(path) == {"format": 1}


def test_every_media_file_is_opened_for_reading_in_one_place() -> None:
    result = {
        path.relative_to(ENGINE).as_posix() for path in ENGINE.rglob("*.py") if "av.open(" in path.read_text("utf-8")
    }
    # The others open for writing.
    assert result == {"media/containers.py", "media/fragments.py", "media/h264.py"}


# --- damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp3", "mp3"), ("a.aac", "aac"), ("a.flac", "flac"), ("a.mkv", "aac"), ("a.ts", "aac"), ("b.mkv", "flac")],
)
def test_damaged_packets_are_left_out_and_told(tmp_path: Path, name: str, codec: str) -> None:
    sound = np.concatenate([tone(2.0, 48_000, 440), tone(2.0, 48_000, 880)])
    path = damage(write(tmp_path / name, codec, sound), 0.4, 200 if codec == "mp3" else 40)
    result = read(path)

    # FFmpeg does not hand out what is no whole frame of FLAC; the numbers of the others say what is missing.
    text = "timestamps leave out" if name == "a.flac" else "damaged and left out"
    assert text in told(path)
    assert 1.2 < float(told(path).rpartition("at ")[2].split()[0].rstrip(",")) < 1.9
    # What is left stands where it stood.
    assert hertz(part(result.voices[0], 0.2, 1.0)) == pytest.approx(440, abs=5)
    assert hertz(part(result.voices[0], 2.6, 3.6)) == pytest.approx(880, abs=5)
    assert hertz(part(result.track[:, 0], 2.6, 3.6, SOUND_RATE), SOUND_RATE) == pytest.approx(880, abs=5)


def test_a_damaged_voice_is_refused_when_more_than_half_of_it_is_lost(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mkv", "flac", tone(3.0, 48_000))
    for share in np.arange(0.2, 1.0, 0.02):
        damage(path, float(share), 20)

    with pytest.raises(RequestError, match="packets of the audio are damaged") as caught:
        read(path)
    assert caught.value.code == "audio_unreadable"
    assert caught.value.field == FIELD


@pytest.mark.parametrize(
    ("name", "codec"), [("a.flac", "flac"), ("a.wav", "pcm_s16le"), ("a.mkv", "libopus"), ("a.mp3", "mp3")]
)
def test_a_file_that_was_cut_off_is_heard_as_far_as_it_goes_and_told(tmp_path: Path, name: str, codec: str) -> None:
    path = write(tmp_path / name, codec, tone(3.0, 48_000))
    path.write_bytes(path.read_bytes()[: int(0.6 * path.stat().st_size)])

    assert 1.4 < look(path).cut.seconds < 2.2
    assert "the file is cut off or damaged: its header states 3.0" in told(path)
    assert hertz(part(read(path).voices[0], 0.2, 1.2)) == pytest.approx(440, abs=5)


def test_a_whole_file_is_told_nothing_of(tmp_path: Path) -> None:
    for name, codec in (
        ("a.wav", "pcm_s16le"),
        ("a.mp3", "mp3"),
        ("a.m4a", "aac"),
        ("a.webm", "libopus"),
        ("a.flac", "flac"),
    ):
        assert told(write(tmp_path / name, codec, tone(1.0, 48_000))) == ""


# --- joints -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "codec", "rates"),
    [
        ("a.mp3", "mp3", (24_000, 24_000)),
        ("a.mp3", "mp3", (24_000, 48_000)),
        ("a.aac", "aac", (24_000, 48_000)),
        ("a.aac", "aac", (44_100, 44_100)),
        ("a.ogg", "libopus", (48_000, 48_000)),
        ("a.ogg", "flac", (24_000, 48_000)),
        ("a.flac", "flac", (16_000, 44_100)),
        ("a.wav", "pcm_s16le", (16_000, 44_100)),
        ("a.ts", "aac", (24_000, 48_000)),
        ("a.webm", "libopus", (48_000, 48_000)),
    ],
)
@pytest.mark.parametrize("channels", [1, 2])
def test_joined_files_are_heard_one_after_the_other(
    tmp_path: Path, name: str, codec: str, rates: tuple[int, int], channels: int
) -> None:
    first = write(tmp_path / f"1{name}", codec, tone(1.5, rates[0], 440), rate=rates[0])
    second = tone(1.5, rates[1], 880)
    if channels == 2:
        second = np.stack([second, 0.5 * second], axis=1)
    joined = join(tmp_path / name, first, write(tmp_path / f"2{name}", codec, second, rate=rates[1]))
    result, seconds = read(joined), look(joined).cut.seconds

    # Encoders fill the last packet up, and some begin with silence: at most 0.15 s a joint.
    assert seconds == pytest.approx(3.0, abs=0.15)
    for samples, rate in ((result.voices[0], VOICE_RATE), (result.track[:, 0], SOUND_RATE)):
        assert hertz(part(samples, 0.2, 1.3, rate), rate) == pytest.approx(440, abs=5)
        assert hertz(part(samples, 1.8, 2.8, rate), rate) == pytest.approx(880, abs=5)


# --- tracks and channels ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
@pytest.mark.parametrize("default", [0, 1])
def test_the_track_flagged_as_default_is_heard_and_told(tmp_path: Path, name: str, default: int) -> None:
    path = write(tmp_path / name, "aac", tone(1.0, 48_000, 440), tone(1.0, 48_000, 880), default=default)

    assert hertz(part(read(path).voices[0], 0.2, 0.8)) == pytest.approx((440, 880)[default], abs=5)
    assert f"2 audio tracks, and track {default + 1}, flagged as default, is heard" in told(path)
    other = inspect(path, field=FIELD, track=2 - default).cut
    assert hertz(part(read_sounds([path], [other], [(0, 1)], 1).voices[0], 0.2, 0.8)) == pytest.approx(
        (880, 440)[default], abs=5
    )
    assert not inspect(path, field=FIELD, track=1).warnings


@pytest.mark.parametrize("right", [-1.0, -0.9])
def test_channels_of_opposite_phase_are_heard_by_their_difference(tmp_path: Path, right: float) -> None:
    voice = tone(1.0, 48_000)
    path = write(tmp_path / "a.wav", "pcm_s16le", np.stack([voice, right * voice], axis=1))
    result = read(path)

    assert "opposite phase" in told(path)
    plain = read(write(tmp_path / "b.wav", "pcm_s16le", voice))
    # Both are levelled, and resampled at the same rate.
    assert np.abs(result.voices[0] - plain.voices[0]).max() < 1e-3
    # The viewer hears the file as it is.
    assert result.track[:, 1] == pytest.approx(right * result.track[:, 0], abs=1e-4)


@pytest.mark.parametrize(("left", "right"), [(1.0, 1.0), (1.0, 0.0), (0.0, 1.0), (1.0, 0.3), (1.0, -0.3)])
def test_other_stereo_is_heard_by_its_mean(tmp_path: Path, left: float, right: float) -> None:
    voice = tone(1.0, 48_000)
    path = write(tmp_path / "a.wav", "pcm_s16le", np.stack([left * voice, right * voice], axis=1))

    assert told(path) == ""
    assert level(read(path).voices[0]) > 0.01


@pytest.mark.parametrize(
    ("channels", "text"),
    [
        ({0: 1.0, 1: -1.0}, "opposite phase"),
        ({3: 1.0}, "only channel 4 is used"),
        ({2: 1.0}, ""),
        ({0: 1.0}, ""),
        ({4: 1.0, 5: 1.0}, ""),
    ],
)
def test_a_voice_in_any_channel_of_surround_is_heard(tmp_path: Path, channels: dict[int, float], text: str) -> None:
    samples = np.zeros((48_000, 6), np.float32)
    for number, factor in channels.items():
        samples[:, number] = factor * tone(1.0, 48_000)
    path = write(tmp_path / "a.wav", "pcm_s16le", samples, layout="5.1")

    assert text in told(path)
    assert bool(text) == bool(told(path))
    assert level(read(path).voices[0]) > 0.01
    assert level(read(path).track[:, 0]) > 0.01


@pytest.mark.parametrize("factor", [0.0, 1e-5])
def test_a_voice_that_the_network_hears_as_silence_is_told(tmp_path: Path, factor: float) -> None:
    path = write(tmp_path / "a.wav", "pcm_f32le", factor * tone(1.0, 48_000))

    assert "silent" in told(path) or "too quiet" in told(path)


def test_a_voice_that_is_silent_for_as_long_as_the_video_lasts_is_told(tmp_path: Path) -> None:
    sound = np.concatenate([np.zeros(96_000, np.float32), tone(1.0, 48_000)])
    path = write(tmp_path / "a.wav", "pcm_s16le", sound)

    assert "silent in the 1.50 s of it that are in the video" in "\n".join(read(path, 1.5).warnings)
    assert not read(path, 3.0).warnings


# --- clocks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mkv", "pcm_s16le"), ("a.webm", "libopus"), ("a.mp4", "aac"), ("a.ts", "aac"), ("a.mkv", "flac")],
)
def test_gaps_in_timestamps_become_silence(tmp_path: Path, name: str, codec: str) -> None:
    path = write(tmp_path / name, codec, tone(2.0, 48_000), gap=(1.0, 1.5))
    result = read(path)

    assert look(path).cut.seconds == pytest.approx(3.5, abs=0.05)
    for samples, rate in ((result.voices[0], VOICE_RATE), (result.track[:, 0], SOUND_RATE)):
        assert level(part(samples, 0.1, 0.9, rate)) > 0.01
        assert level(part(samples, 1.15, 2.4, rate)) < 1e-4
        assert level(part(samples, 2.6, 3.4, rate)) > 0.01
    assert "leave out 1.5" in told(path)


@pytest.mark.parametrize("picture", [None, 2.0])
@pytest.mark.parametrize(
    ("name", "codec"), [("a.mkv", "pcm_s16le"), ("a.mp4", "aac"), ("a.webm", "libopus"), ("a.ts", "aac")]
)
def test_sound_that_begins_later_than_its_file_stays_later(
    tmp_path: Path, name: str, codec: str, picture: float | None
) -> None:
    if picture and name == "a.webm":
        name = "a.mkv"
    path = write(tmp_path / name, codec, click(1.0, 48_000, 0.2), offset=0.7, picture=picture)
    # A transport stream's clock begins anywhere, so that without pictures there is nothing to be late for.
    late = 0.0 if name == "a.ts" and not picture else 0.7
    track = read(path).track[:, 0]

    assert np.abs(track).argmax() / SOUND_RATE == pytest.approx(late + 0.205, abs=0.01)
    assert ("begins 0.70 s after the file does" in told(path)) == bool(late)


@pytest.mark.parametrize("rate", [16_000, 48_000])
@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        *((name, "aac", {}) for name in ("a.m4a", "a.aac", "a.ts", "a.mkv", "a.mov")),
        ("a.mp4", "aac", FRAGMENTED),
        ("b.mp4", "aac", {"movflags": "frag_keyframe+empty_moov+delay_moov"}),
        *((name, "mp3", {}) for name in ("a.mp3", "a.mkv", "a.mp4", "a.ts", "a.avi")),
        ("b.mp3", "mp3", {"write_xing": "0"}),
        *((name, "libopus", {}) for name in ("a.ogg", "a.webm", "a.mp4", "a.ts")),
        ("b.mp4", "libopus", FRAGMENTED),
    ],
)
def test_priming_is_cut_alike_in_all_containers(
    tmp_path: Path, name: str, codec: str, options: dict[str, str], rate: int
) -> None:
    at = 0.3
    # FFmpeg's muxer states a wrong pre-skip for Opus of other rates than its own.
    rate = 48_000 if codec == "libopus" else rate
    path = write(tmp_path / name, codec, click(1.0, rate, at), rate=rate, options=options)
    track = np.abs(read(path).track[:, 0])
    begins = int(np.argmax(track > 0.25 * track.max())) / SOUND_RATE

    # Half a millisecond into the burst; codecs smear it by a few.
    assert begins == pytest.approx(at, abs=0.004)


def test_length_is_that_of_what_is_decoded(tmp_path: Path) -> None:
    for name, codec, rate in (
        ("a.mkv", "aac", 44_100),
        ("b.mkv", "mp3", 22_050),
        ("c.mkv", "libopus", 48_000),
        ("d.mkv", "pcm_s16le", 44_100),
        ("e.ts", "aac", 44_100),
        ("f.flv", "aac", 44_100),
        ("g.mp3", "mp3", 16_000),
        ("h.ogg", "flac", 44_100),
    ):
        path = write(tmp_path / name, codec, tone(7.0, rate), rate=rate)
        track = read(path, 9.0).track[:, 0]
        sounds = np.flatnonzero(np.abs(track) > 1e-4)
        # The last packet is filled up with silence.
        assert look(path).cut.seconds == pytest.approx((sounds[-1] + 1) / SOUND_RATE, abs=0.08), name
        assert look(path).cut.seconds == pytest.approx(7.0, abs=0.08), name


# --- cost -------------------------------------------------------------------------------------------------------------


def test_no_more_of_a_long_file_is_decoded_than_the_video_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engine.media import audio, pieces

    path = write(tmp_path / "a.mp3", "mp3", tone(300.0, 16_000), rate=16_000)
    heard: list[tuple[float, float]] = []
    plain = pieces.pieces

    def counted(*arguments: object, **named: object) -> object:
        for piece in plain(*arguments, **named):  # type: ignore[arg-type]
            heard.append((piece.time, piece.time + len(piece.raw) / piece.rate))
            yield piece

    monkeypatch.setattr(audio, "pieces", counted)
    whole = look(path).cut
    read_sounds([path], [whole], [(0, whole.seconds)], 1.0)
    assert 30 <= heard[-1][1] < 35
    heard.clear()
    cut = inspect(path, field=FIELD, start=200.0, duration=10.0).cut
    read_sounds([path], [cut], [(0, 10)], 10.0)
    assert heard[0][0] == pytest.approx(199, abs=0.2)
    assert heard[-1][1] < 214


@pytest.mark.parametrize(
    ("name", "codec", "rate", "gap"),
    [
        *(
            (name, codec, rate, None)
            for name, codec, rate in (
                ("a.mp3", "mp3", 44_100),
                ("a.m4a", "aac", 48_000),
                ("a.aac", "aac", 44_100),
                ("a.ogg", "libopus", 48_000),
                ("a.webm", "libopus", 48_000),
                ("a.flac", "flac", 44_100),
                ("a.ts", "aac", 48_000),
                ("a.mkv", "aac", 44_100),
                ("b.mkv", "flac", 44_100),
                ("a.wav", "pcm_s16le", 44_100),
                ("a.avi", "mp3", 32_000),
            )
        ),
        ("a.m4a", "aac", 48_000, (2.0, 3.0)),
        ("a.webm", "libopus", 48_000, (2.0, 3.0)),
        ("a.ts", "aac", 48_000, (2.0, 3.0)),
        ("a.mkv", "aac", 44_100, (2.0, 3.0)),
        ("b.mkv", "flac", 44_100, (2.0, 3.0)),
    ],
)
def test_a_part_of_any_file_is_that_part_of_the_whole(
    tmp_path: Path, name: str, codec: str, rate: int, gap: tuple[float, float] | None
) -> None:
    clock = np.arange(8 * rate) / rate
    sweep = (0.4 * np.sin(2 * np.pi * (200 + 60 * clock) * clock)).astype(np.float32)
    path = write(tmp_path / name, codec, sweep, rate=rate, gap=gap)
    whole = decode(path, VOICE_RATE, "mono")
    for start, duration in ((0.5, 1.0), (3.21, 2.0), (6.7, 1.2)):
        piece = decode(path, VOICE_RATE, "mono", cut=inspect(path, field=FIELD, start=start, duration=duration).cut)
        begin = round(start * VOICE_RATE)
        # The resampler begins anew, and lossy decoders find into the stream: not at the edges, and all but exact.
        other = whole[begin : begin + round(duration * VOICE_RATE)]
        assert len(piece) == pytest.approx(len(other), abs=1)
        # Behind a gap the whole is laid to the nearest of the samples.
        assert np.abs(piece[200:-200] - other[200 : len(piece) - 200]).max() < (0.1 if gap else 0.01)


def test_each_file_is_decoded_once_for_all_who_speak_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from engine.media import audio, pieces

    path = write(tmp_path / "a.wav", "pcm_s16le", np.stack([tone(1.0, 48_000), tone(1.0, 48_000, 880)], axis=1))
    count = 0
    plain = pieces.pieces

    def counted(*arguments: object, **named: object) -> object:
        nonlocal count
        count += 1
        return plain(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(audio, "pieces", counted)
    cuts = [inspect(path, field=FIELD, channel=channel).cut for channel in (1, 2)]
    found = read_sounds([path, path], cuts, [(0, 1), (0, 1)], 1.0)
    assert count == 1
    assert [round(hertz(voice)) for voice in found.voices] == [440, 880]


def test_a_withdrawn_request_stops_looking_and_decoding(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", "pcm_s16le", tone(1.0, 48_000))
    cancel = threading.Event()
    cut = look(path).cut
    cancel.set()

    with pytest.raises(Cancelled):
        inspect(path, field=FIELD, cancel=cancel)
    with pytest.raises(Cancelled):
        read_sounds([path], [cut], [(0, 1)], 1.0, cancel=cancel)
