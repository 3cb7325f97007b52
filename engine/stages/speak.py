"""A script -> a voice file for each person, with the turns at their times."""

from __future__ import annotations

import wave
from dataclasses import replace
from pathlib import Path

import numpy as np
import soxr

from engine.cancel import check
from engine.data import Request, Speaker
from engine.data.cancel import CancelToken
from engine.data.dialogue import Dialogue, Made, Samples, Speech, Turn
from engine.errors import RequestError
from engine.stages.script import FIELD, Script

#: Samples per second of the files.
RATE = 24_000
#: Level relative to a turn's peak below which its begin and end are silence.
_SILENT = 10 ** (-50 / 20)


def speak(
    request: Request,
    script: Script,
    speech: Speech,
    *,
    by: str,
    gap: float,
    most: float,
    into: Path,
    cancel: CancelToken | None = None,
) -> Request:
    """Return `request` with the speakers of `script`, whose voices are files in the folder `into`.

    `gap` are the seconds between two turns, unless the script says otherwise; `most` the maximum seconds of the whole.
    Raises RequestError that names the line, and Cancelled.
    """
    voices: list[list[tuple[float, Samples]]] = [[] for _ in script.people]
    turns: list[Turn] = []
    end = 0.0
    for said in script.turns:
        check(cancel, "speak")
        person = script.people[said.person]
        try:
            sound, rate = speech.say(said.text, person.voice, cancel=cancel)
        except RequestError as error:
            line = f"line {said.line}, {person.name}: {error.what}"
            raise RequestError(line, field=FIELD, hint=error.hint) from error
        sound = trimmed(sound if rate == RATE else soxr.resample(sound, rate, RATE))
        if not len(sound):
            raise RequestError(
                f"line {said.line}: the voice says nothing", field=FIELD, hint="check the text, or its language"
            )
        usual = gap if turns else 0.0
        # To a sample, so that the plan and the file agree. A person's own turns never overlap.
        begins = max(0.0, end + (usual if said.gap is None else said.gap))
        begins = max([begins, *(turn.ends for turn in turns if turn.person == said.person)])
        begins = round(begins * RATE) / RATE
        end = begins + len(sound) / RATE
        if end > most:
            what = f"line {said.line}: the dialogue is longer than {most:g} s"
            raise RequestError(what, field=FIELD, hint="shorten the script", code="out_of_range")
        voices[said.person].append((begins, sound))
        turns.append(Turn(said.person, begins, end, said.text))
    end = max(turn.ends for turn in turns) + script.after
    speakers, files = [], {}
    for index, (person, parts) in enumerate(zip(script.people, voices, strict=True)):
        if not parts:
            speakers.append(Speaker(None, person.region))
            continue
        address = f"script:{index + 1}"
        # A pause at the end of the script belongs to whoever speaks last.
        first, last = parts[0][0], end if index == turns[-1].person else 0.0
        files[address] = write_voice(into / f"voice_{index + 1}.wav", parts, first, last)
        speakers.append(Speaker(address, person.region, delay=first))
    people = tuple(person.name for person in script.people)
    made = Made(Dialogue(by, people, tuple(turns)), files)
    return replace(request, speakers=tuple(speakers), made=made)


def write_voice(path: Path, parts: list[tuple[float, Samples]], first: float, last: float = 0.0) -> Path:
    """Write `parts`, (seconds, samples at RATE), to a WAV file from `first` seconds on, at least until `last`."""
    length = max([last, *(at + len(sound) / RATE for at, sound in parts)]) - first
    samples = np.zeros(round(length * RATE), np.float32)
    for at, sound in parts:
        begin = round((at - first) * RATE)
        samples[begin : begin + len(sound)] += sound[: len(samples) - begin]
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(np.round(np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
    return path


def trimmed(sound: Samples) -> Samples:
    """Return a turn without the silence at its begin and end, so that pauses are as long as the script says."""
    loud = np.flatnonzero(np.abs(sound) > _SILENT * np.abs(sound).max(initial=0.0))
    return sound[:0] if not len(loud) else sound[loud[0] : loud[-1] + 1]
