"""A soundtrack is heard in place of the voices, which only the network hears."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from example_request import REQUEST
from sounds import tone, write

from engine.data import Inputs, Media, Plan
from engine.errors import RequestError
from engine.service import EngineService
from engine.stages.soundtrack import play_soundtrack, with_soundtrack

RATE = 48_000


@pytest.fixture(scope="module")
def plan() -> Plan:
    return EngineService(["model=tiny", "source=packaged"]).plan(replace(REQUEST, frames=50))


def media_of(path: Path) -> Media:
    picture, voice = Path(REQUEST.image), Path(str(REQUEST.speakers[0].audio))
    empty = Media(picture, (480, 288), (voice,), (2.0,), (None,))
    return with_soundtrack(empty, path, most=60)


def inputs_of(plan: Plan) -> Inputs:
    voice = np.ones(round(plan.seconds * 16_000), np.float32)
    sound = np.ones((round(plan.seconds * RATE), 2), np.float32)
    return Inputs(np.zeros((8, 8, 3), np.uint8), (voice,), np.zeros((2, 1, 1), np.float32), sound)


def test_the_sound_is_that_of_the_file_and_the_voices_stay(plan: Plan, tmp_path: Path) -> None:
    path = write(tmp_path / "music.wav", "pcm_s16le", tone(3, RATE))
    before = inputs_of(plan)
    after = play_soundtrack(before, media_of(path), plan)
    assert after.voices is before.voices
    assert after.sound.shape == before.sound.shape
    # 16 bits.
    assert np.abs(after.sound[:, 0] - tone(3, RATE)[: len(after.sound)]).max() < 1e-4
    assert after.warnings == ()


def test_without_a_soundtrack_nothing_changes(plan: Plan) -> None:
    media = Media(Path("a.png"), (1, 1), (None,), (0.0,), (None,))
    inputs = inputs_of(plan)
    assert play_soundtrack(inputs, media, plan) is inputs


def test_a_short_soundtrack_ends_in_silence_and_is_told(plan: Plan, tmp_path: Path) -> None:
    path = write(tmp_path / "music.wav", "pcm_s16le", tone(1, RATE))
    after = play_soundtrack(inputs_of(plan), media_of(path), plan)
    assert after.sound[: RATE // 2].any()
    assert not after.sound[RATE + 100 :].any()
    assert after.warnings == ("soundtrack: it ends at 1.00 s, and the video at 2.00 s in silence",)


def test_a_soundtrack_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "long.wav", "pcm_s16le", tone(61, 8_000), rate=8_000)
    with pytest.raises(RequestError, match="longer than 60 seconds") as caught:
        media_of(path)
    assert caught.value.field == "request.soundtrack"
    (tmp_path / "none.wav").write_bytes(b"nothing")
    with pytest.raises(RequestError) as caught:
        media_of(tmp_path / "none.wav")
    assert caught.value.field == "request.soundtrack"


def test_a_soundtrack_is_all_that_is_heard_of_a_dubbed_video_too(tmp_path: Path) -> None:
    scene = str(Path(REQUEST.image).parent / "scene.mp4")
    request = replace(REQUEST, image="", video=scene, soundtrack=scene, overrides=("dub.sound=under",))
    with pytest.raises(RequestError, match=r"dub\.sound=under") as caught:
        EngineService(["model=tiny", "source=packaged", "continuation.style=infinitetalk"]).plan(request)
    assert caught.value.field == "request.soundtrack"
