"""What is taken of a voice's file: start, duration, delay, track and channel, as fields or behind a #."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sounds import Samples, click, tone, write

from engine.data import Access, Media, Request, Speaker
from engine.errors import RequestError
from engine.media.audio import SOUND_RATE, VOICE_RATE, read_sounds, voice_spans
from engine.media.excerpts import split_address
from engine.service import EngineService
from engine.serving.jobs.job import parse_job
from engine.serving.jobs.speakers import parse_speakers
from engine.stages.read import check_request, fetch

EXAMPLES = Path(__file__).parents[2] / "engine" / "examples"


def open_paths(address: str, scheme: str, access: Access, into: Path) -> Path | None:
    return Path(address) if scheme == "path" else None


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (96, 64), (200, 40, 60)).save(tmp_path / "a.png")
    write(tmp_path / "a.wav", "pcm_s16le", tone(3.0, 16_000), rate=16_000)
    call = np.stack([tone(2.0, 48_000, 440), tone(2.0, 48_000, 880)], axis=1)
    write(tmp_path / "call.wav", "pcm_s16le", call)
    write(tmp_path / "two.mkv", "flac", tone(1.0, 48_000, 440), tone(1.0, 48_000, 880), default=0)
    return tmp_path


def request(folder: Path, *speakers: Speaker | str, **changes: Any) -> Request:
    people = tuple(Speaker(str(folder / one)) if isinstance(one, str) else one for one in speakers)
    people = tuple(dataclasses.replace(one, audio=one.audio and str(folder / one.audio)) for one in people)
    return dataclasses.replace(Request("Two people talk.", str(folder / "a.png"), people), **changes)


def look(asked: Request, access: Access | None = None) -> Media:
    return fetch(asked, open_paths, access or Access(), Path("/nonexistent"))


def heard(media: Media, seconds: float, audio_type: Any = "para") -> tuple[tuple[Samples, ...], Samples]:
    spans = voice_spans(media.seconds, audio_type, media.delays)
    result = read_sounds(media.voices, media.cuts, spans, seconds)
    return result.voices, result.track


def hertz(samples: Samples, rate: int = VOICE_RATE) -> int:
    return round(float(np.abs(np.fft.rfft(samples * np.hanning(len(samples)))).argmax()) * rate / len(samples))


def begins(track: Samples) -> float:
    return int(np.flatnonzero(np.abs(track[:, 0]) > 0.05)[0]) / SOUND_RATE


# --- start, duration, delay -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["fields", "address"])
@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_a_part_of_a_file_is_heard_as_if_it_were_a_file(folder: Path, how: str, rate: int) -> None:
    sound = np.random.default_rng(0).uniform(-0.5, 0.5, 3 * rate).astype(np.float32)
    write(folder / "long.wav", "pcm_s16le", sound, rate=rate)
    write(folder / "part.wav", "pcm_s16le", sound[rate // 2 : rate // 2 + rate], rate=rate)
    part = Speaker("long.wav", start=0.5, duration=1.0) if how == "fields" else Speaker("long.wav#start=0.5,duration=1")
    media = look(request(folder, part))

    assert media.seconds == pytest.approx((1.0,))
    (voice,), track = heard(media, 1.0)
    (other,), plain = heard(look(request(folder, Speaker("part.wav"))), 1.0)
    assert (voice == other).all()
    assert (track == plain).all()


def test_a_delay_is_silence_before_the_voice(folder: Path) -> None:
    write(folder / "c.wav", "pcm_s16le", click(1.0, 48_000, 0.0))
    media = look(request(folder, Speaker("c.wav", delay=0.4), Speaker("c.wav", delay=1.5)))

    assert media.delays == (0.4, 1.5)
    voices, track = heard(media, 3.0)
    assert begins(track) == pytest.approx(0.4, abs=1e-3)
    assert begins(track[SOUND_RATE:]) == pytest.approx(0.5, abs=1e-3)
    assert [np.abs(voice).argmax() / VOICE_RATE for voice in voices] == pytest.approx([0.405, 1.505], abs=0.006)


def test_delays_of_voices_that_follow_each_other_are_pauses(folder: Path) -> None:
    write(folder / "c.wav", "pcm_s16le", click(1.0, 48_000, 0.0))
    media = look(request(folder, Speaker("c.wav", delay=0.25), Speaker("c.wav", delay=0.5)))
    _, track = heard(media, 3.0, "add")

    assert begins(track) == pytest.approx(0.25, abs=1e-3)
    assert begins(track[SOUND_RATE:]) == pytest.approx(0.75, abs=1e-3)


def test_a_plan_says_when_voices_begin_and_how_long_the_video_is() -> None:
    speakers = (
        Speaker(str(EXAMPLES / "left.flac"), start=0.5, duration=1.0, delay=0.2),
        Speaker(str(EXAMPLES / "right.flac"), duration=1.0, delay=0.5),
    )
    plan = EngineService().plan(Request("two people", str(EXAMPLES / "two.png"), speakers, audio_type="add"))

    assert [(seat.begins, seat.seconds) for seat in plan.seats] == [
        pytest.approx((0.2, 1.0)),
        pytest.approx((1.7, 1.0)),
    ]
    assert plan.frames == 67
    assert not [text for text in plan.warnings if "speakers[" in text]


def test_a_part_that_is_shorter_than_asked_is_told(folder: Path) -> None:
    media = look(request(folder, Speaker("a.wav", start=2.0, duration=5.0)))

    assert media.seconds == pytest.approx((1.0,))
    assert media.warnings == ("speakers[0]: 5 s are asked for from 2 s on, and the file ends 1.00 s later",)


def test_a_voice_that_begins_behind_the_videos_end_is_told(folder: Path) -> None:
    media = look(request(folder, Speaker("a.wav", delay=2.0)))
    result = read_sounds(media.voices, media.cuts, voice_spans(media.seconds, "para", media.delays), 1.0)

    assert result.warnings == ("speakers[0]: the voice begins at 2.00 s, when the video is over",)
    assert not result.voices[0].any()


# --- tracks and channels ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("call.wav#left", "call.wav#right"),
        ("call.wav#channel=1", "call.wav#channel=2"),
        (Speaker("call.wav", channel="left"), Speaker("call.wav", channel="right")),
        (Speaker("call.wav", channel=1), Speaker("call.wav", channel=2)),
        ("two.mkv#1", "two.mkv#2"),
        ("two.mkv#track=1", Speaker("two.mkv", track=2)),
    ],
)
def test_one_recording_serves_both_people(folder: Path, left: Any, right: Any) -> None:
    media = look(request(folder, left, right))
    voices, track = heard(media, 1.0)

    assert [hertz(voice) for voice in voices] == [440, 880]
    # The viewer hears each of them once, in the middle.
    assert (track[:, 0] == track[:, 1]).all()


def test_what_is_asked_twice_alike_is_no_conflict(folder: Path) -> None:
    media = look(request(folder, Speaker("call.wav#left", channel=1)))
    assert media.cuts[0] is not None
    assert media.cuts[0].channel == 1


# --- names with a # ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a#left", "take #2", "song#track=1", "c#.wav", "a#b#c.wav", "#left"])
def test_a_file_whose_name_has_a_hash_is_that_file(folder: Path, name: str) -> None:
    (folder / "call.wav").rename(folder / name)

    media = look(request(folder, name))
    assert media.cuts[0] is not None
    assert media.cuts[0].channel is None
    chosen = look(request(folder, f"{name}#right"))
    assert chosen.cuts[0] is not None
    assert chosen.cuts[0].channel == 2


@pytest.mark.parametrize(
    ("address", "base", "values"),
    [
        ("a.wav", "a.wav", {}),
        ("a.wav#left", "a.wav", {"channel": "left"}),
        ("a.wav#2", "a.wav", {"track": 2}),
        (
            "a.wav#right,start=1.5,duration=2,delay=0.5",
            "a.wav",
            {"channel": "right", "start": 1.5, "duration": 2, "delay": 0.5},
        ),
        ("https://host/a.wav#track=2&channel=3", "https://host/a.wav", {"track": 2, "channel": 3}),
        ("data:audio/wav;base64,AAAA#left", "data:audio/wav;base64,AAAA", {"channel": "left"}),
        ("s3://bucket/a#left#right", "s3://bucket/a#left", {"channel": "right"}),
        ("https://host/a.wav#t=3", "https://host/a.wav#t=3", {}),
        ("a.wav#left,what", "a.wav#left,what", {}),
        ("a.wav#", "a.wav#", {}),
        ("#left", "#left", {}),
        ("a.wav#left,left", "a.wav#left,left", {}),
    ],
)
def test_an_address_is_split_where_all_words_are_known(address: str, base: str, values: dict[str, Any]) -> None:
    assert split_address(address) == (base, values)


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"start": -1}, "start"),
        ({"start": float("nan")}, "start"),
        ({"start": 1e9}, "start"),
        ({"start": "1"}, "start"),
        ({"duration": 0}, "duration"),
        ({"duration": -2.0}, "duration"),
        ({"duration": float("inf")}, "duration"),
        ({"delay": -0.1}, "delay"),
        ({"delay": 4000}, "delay"),
        ({"track": 0}, "track"),
        ({"track": 1.5}, "track"),
        ({"track": True}, "track"),
        ({"channel": 0}, "channel"),
        ({"channel": "middle"}, "channel"),
    ],
)
def test_a_value_that_is_none_names_its_field(folder: Path, values: dict[str, Any], key: str) -> None:
    with pytest.raises(RequestError) as caught:
        check_request(request(folder, Speaker("a.wav", **values)))
    assert caught.value.field == f"request.speakers[0].{key}"
    assert caught.value.hint
    with pytest.raises(RequestError) as caught:
        parse_speakers([{"audio": "a.wav", **values}])
    assert caught.value.field == f"request.speakers[0].{key}"
    (word,) = [f"{key}={value}" for value in values.values()]
    if word not in ("track=True", "start=1"):
        with pytest.raises(RequestError, match=f"^request.speakers\\[0\\].audio: {key}: ") as caught:
            look(request(folder, f"a.wav#{word}"))


@pytest.mark.parametrize(
    ("speaker", "field", "text"),
    [
        (Speaker("a.wav", start=3.5), "start", "is to begin at 3.5 s, and the file ends at 3.00 s"),
        (Speaker("a.wav", channel="right"), "channel", "there is no channel 2: the track has 1"),
        (Speaker("call.wav", channel=3), "channel", "there is no channel 3: the track has 2"),
        (Speaker("a.wav", track=2), "track", "there is no track 2: the file has 1 audio track"),
        (Speaker("a.wav#start=3.5"), "audio", "is to begin at 3.5 s"),
        (Speaker("two.mkv#3"), "audio", "there is no track 3: the file has 2 audio tracks"),
        (Speaker("call.wav#left", channel="right"), "channel", "the address has channel 'left' and the field 'right'"),
        (Speaker("a.wav#lefft"), "audio", "does not exist"),
    ],
)
def test_what_is_not_in_the_file_names_the_field(folder: Path, speaker: Speaker, field: str, text: str) -> None:
    with pytest.raises(RequestError) as caught:
        look(request(folder, speaker))
    assert caught.value.field == f"request.speakers[0].{field}"
    assert text in caught.value.what
    assert caught.value.hint


def test_a_silent_person_has_nothing_to_take(folder: Path) -> None:
    with pytest.raises(RequestError) as caught:
        check_request(request(folder, Speaker(None, start=1.0), frames=5))
    assert (caught.value.field, caught.value.code) == ("request.speakers[0].start", "conflict")


def test_only_what_is_taken_is_held_to_the_limit(folder: Path) -> None:
    access = Access(max_seconds=1.0)
    with pytest.raises(RequestError, match=r"longer than 1 seconds.*access\.max_seconds") as caught:
        look(request(folder, "a.wav"), access)
    assert caught.value.code == "audio_too_long"
    assert look(request(folder, "a.wav#start=1,duration=0.5"), access).seconds == (0.5,)
    with pytest.raises(RequestError, match="longer than 1 seconds"):
        EngineService(["access.max_seconds=1"]).plan(
            Request("one", str(EXAMPLES / "one.png"), (Speaker(str(EXAMPLES / "one.flac")),))
        )


# --- jobs -------------------------------------------------------------------------------------------------------------


def job(*speakers: dict[str, Any]) -> dict[str, Any]:
    return {"input": {"reference_image": "a.png", "prompt": "two", "speakers": [*speakers]}}


def test_a_job_says_what_is_taken_of_each_file() -> None:
    cut = {"start": 1, "duration": 2.5, "delay": 0.5, "track": 2, "channel": "left"}
    asked = parse_job(job({"audio": "https://host/call.wav", **cut}, {"audio": "s3://media/b.wav#right"})).request

    assert asked is not None
    assert asked.speakers == (Speaker("https://host/call.wav", **cut), Speaker("s3://media/b.wav#right"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "field", "code"),
    [
        ({"start": -1}, "speakers[0].start", "out_of_range"),
        ({"duration": 0}, "speakers[0].duration", "out_of_range"),
        ({"delay": 3601}, "speakers[0].delay", "out_of_range"),
        ({"delay": "1"}, "speakers[0].delay", "wrong_type"),
        ({"track": 0}, "speakers[0].track", "out_of_range"),
        ({"track": 1.5}, "speakers[0].track", "wrong_type"),
        ({"channel": "middle"}, "speakers[0].channel", "unknown_choice"),
        ({"channel": 0}, "speakers[0].channel", "out_of_range"),
        ({"channel": []}, "speakers[0].channel", "wrong_type"),
        ({"chanel": 1}, "speakers[0].chanel", "unknown_field"),
    ],
)
def test_a_jobs_wrong_value_names_its_field(values: dict[str, Any], field: str, code: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_job(job({"audio": "a.wav", **values}))
    assert (caught.value.field, caught.value.code) == (field, code)


def test_a_jobs_silent_person_has_nothing_to_take() -> None:
    with pytest.raises(RequestError) as caught:
        parse_job(job({"audio": "a.wav"}, {"silence": True, "delay": 1}))
    assert (caught.value.field, caught.value.code) == ("speakers[1].delay", "conflict")


def test_a_video_has_the_sound_track_that_was_asked_for(tmp_path: Path) -> None:
    """Through all of it: a job's fields, the network, the encoder; what is heard in the MP4 begins when it should."""
    import av

    write(tmp_path / "c.wav", "pcm_s16le", np.concatenate([tone(1.0, 48_000, 200), click(1.0, 48_000, 0.0)]))
    speaker = {"audio": str(tmp_path / "c.wav"), "start": 1.0, "duration": 0.3, "delay": 0.2}
    asked = parse_job(
        {
            "input": {
                "reference_image": str(EXAMPLES / "one.png"),
                "prompt": "one",
                "speakers": [speaker],
                "num_frames": 5,
                "fps": 8,
                "sampling_steps": 2,
            }
        }
    ).request
    assert asked is not None
    delivery = EngineService([f"sink.folder={tmp_path}"]).generate(asked)
    assert delivery.address is not None
    with av.open(delivery.address) as file:
        sound = np.concatenate([frame.to_ndarray() for frame in file.decode(audio=0)], axis=1)
        provenance = json.loads(file.metadata["comment"])["multitalk"]
    loud = np.flatnonzero(np.abs(sound[0]) > 0.1)
    assert loud[0] / SOUND_RATE == pytest.approx(0.2, abs=0.003)
    assert loud[-1] / SOUND_RATE == pytest.approx(0.21, abs=0.003)
    assert provenance["request"]["speakers"] == [
        {"silence": False, "box": None, "mask": False, "start": 1.0, "duration": 0.3, "delay": 0.2}
    ]
