"""One recording becomes a voice for each person: by channels, and by who speaks."""

from __future__ import annotations

import wave
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from sounds import tone, write

from engine.data import Request, Speaker, Turn, Voice
from engine.data.cancel import CancelToken
from engine.data.dialogue import Diariser, Samples
from engine.errors import RequestError
from engine.media.audio import decode
from engine.stages.divide import by_channels, divide, meetings, overlaps
from engine.stages.read import check_request
from plugins.diarisers.resemblyzer import Resemblyzer, ResemblyzerConfig
from plugins.speech.espeak import Espeak, EspeakConfig


def test_channels_become_voices_and_a_missing_channel_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "call.wav", "pcm_s16le", np.stack([tone(1, 48_000), tone(1, 48_000, 220)], 1))
    request = Request("p", "i", (), voices="call.wav")
    found = by_channels(request, path, by="diariser=channels", most=60)
    assert [speaker.channel for speaker in found.speakers] == [1, 2]
    three = Request("p", "i", (), voices="call.wav", people=3)
    with pytest.raises(RequestError, match=r"request\.people"):
        by_channels(three, path, by="diariser=channels", most=60)


BOXES = ((0.5, 0.0, 1.0, 1.0), (0.0, 0.0, 0.5, 1.0))


def test_people_of_a_recording_stand_where_their_boxes_are(tmp_path: Path) -> None:
    class Third:
        """Who speaks in the first, and who in the last third of a second."""

        def find(self, sound: Samples, people: int, *, cancel: CancelToken | None = None) -> Sequence[Turn]:
            return [Turn(0, 0.0, 0.3), Turn(1, 0.6, 0.9)]

    path = write(tmp_path / "call.wav", "pcm_s16le", np.stack([tone(1, 48_000), tone(1, 48_000, 220)], 1))
    request = Request("p", "i", (), voices="call.wav", boxes=BOXES)
    check_request(request)
    for found in (
        by_channels(request, path, by="diariser=channels", most=60),
        divide(request, path, cast("Diariser", Third()), by="third", most=60, into=tmp_path),
    ):
        assert [speaker.region.box for speaker in found.speakers] == [*BOXES]


@pytest.mark.parametrize(
    ("values", "field", "what"),
    [
        ({"voices": ""}, "request.boxes", "no recording"),
        ({"people": 3}, "request.boxes", "2 boxes for 3 people"),
        ({"boxes": (BOXES[0], (0.5, 0, 0.5, 1))}, "request.boxes[1]", "is not a box"),
        ({"boxes": (BOXES[0], (0, 0, 1))}, "request.boxes[1]", "is not a box"),
        ({"people": 9, "boxes": ()}, "request.people", "9"),
        ({"people": True, "boxes": ()}, "request.people", "True"),
    ],
)
def test_boxes_that_are_none_are_refused(values: dict[str, Any], field: str, what: str) -> None:
    speakers = () if values.get("voices", "x") else (Speaker("voice.wav"),)
    given: dict[str, Any] = {"voices": "call.wav", "boxes": BOXES, **values}
    with pytest.raises(RequestError, match=what) as error:
        check_request(Request("p", "i", speakers, **given))
    assert error.value.field == field


def test_overlapping_turns_are_told_and_short_ones_are_not() -> None:
    assert "1.0 to 2.0 s" in overlaps([Turn(0, 0, 2), Turn(1, 1, 3)])
    assert overlaps([Turn(0, 0, 2), Turn(1, 1.9, 3)]) == ""


def test_turns_that_meet_are_told_because_an_overlap_may_be_there() -> None:
    assert meetings([Turn(0, 0, 2), Turn(1, 2.05, 3), Turn(1, 3, 4), Turn(0, 4.3, 5)]) == (
        "voices: turns follow each other without a pause at 2.0 s; if people speak at once there, only one of them gets"
        " the sound"
    )
    many = [Turn(index % 2, index, index + 1) for index in range(8)]
    assert "1.0, 2.0, 3.0, 4.0, 5.0 s and 2 more times" in meetings(many)
    assert meetings([Turn(0, 0, 2), Turn(1, 2.2, 3)]) == ""


@pytest.mark.slow
@pytest.mark.skipif(
    find_spec("resemblyzer") is None or find_spec("espeakng_loader") is None, reason="needs [diarise] and [speech]"
)
def test_two_people_in_one_recording_are_told_apart(tmp_path: Path) -> None:
    speech, parts, truth, at = Espeak(EspeakConfig()), [], [], 0.0
    for person, text in (
        (0, "Hello Ben, how are you today?"),
        (1, "I am fine, thank you for asking."),
        (0, "That is good news, let us go."),
    ):
        sound, rate = speech.say(text, Voice(person))
        truth.append((person, at, at + len(sound) / rate))
        at += len(sound) / rate
        parts.append(sound)
    with wave.open(str(tmp_path / "call.wav"), "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes((np.concatenate(parts) * 32767).astype("<i2").tobytes())
    diariser = Resemblyzer(ResemblyzerConfig())
    request = Request("p", "i", (), voices="call.wav")
    found = divide(request, tmp_path / "call.wav", diariser, by="diariser=resemblyzer", most=60, into=tmp_path)
    assert found.made is not None
    voices = [decode(path, 16_000, "mono") for path in found.made.files.values()]
    # Away from the changes of speakers, a voice is loud in its own turns and silent in the other's.
    for person, begin, end in truth:
        middle = slice(round((begin + 0.5) * 16_000), round((end - 0.5) * 16_000))
        own, other = (float(np.square(voices[index][middle]).mean()) for index in (person, 1 - person))
        assert own > 100 * other
