"""Measure who speaks when, and lips: `python -m scripts.measure_voices WHAT [--keep FOLDER]`. Prints JSON.

`who`: recordings of several people, made of eSpeak NG's voices, and the diariser's errors. `voices`: a video from such
a recording: whether each mouth moves in its own turns. `vocals`: lips of a voice with noise and with music, with and
without a filter. `filter`: how much of noise and music RNNoise removes, as SI-SDR. Needs the extras speech, diarise and
vocals.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import wave
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soxr

import engine
from engine import EngineService, Request, Speaker
from engine.data import Plan, Turn, Voice
from engine.evaluation.frames import read_video
from engine.evaluation.metrics import times
from engine.evaluation.mouths import correlation, find_mouths, mouth_openings
from engine.evaluation.voices import CURVE_RATE, LEVEL, levelled, mouth_of
from engine.machine.rnnoise import denoise
from engine.stages.speak import trimmed
from plugins.diarisers.resemblyzer import Resemblyzer, ResemblyzerConfig
from plugins.speech.espeak import Espeak, EspeakConfig

Floats = npt.NDArray[np.float32]
RATE = 16_000
EXAMPLES = Path(engine.__file__).parent / "examples"
TEXTS = (
    "Hello, it is good to see you again after all these years.",
    "I came by train this morning and the city looks quite different now.",
    "They have built a new bridge over the river, did you notice?",
    "Yes, and the old market is gone, which makes me a little sad.",
    "We should walk there later and have a cup of coffee together.",
    "That is a fine idea, but let me call my sister first.",
    "She told me that the garden behind the house is open today.",
    "Then we can sit outside and talk about your new job.",
    "My new job is hard, but I like the people who work there.",
)
#: Voices of eSpeak NG, and seconds between two turns; below 0: of overlap.
WHO = (
    *((names, 0.3) for names in ("f3,m3", "f2,f4", "m1,m7", "m3,m7")),
    *((names, 0.3) for names in ("f3,m3,f2", "m1,m7,f4", "f2,m3,m7", "f3,f2,f4", "m1,m3,m7")),
    *((names, -0.8) for names in ("f3,m3", "m1,m7", "m1,m7,f4", "f2,m3,m7")),
    *((names, -2.0) for names in ("f3,m3", "m1,m7", "m1,m7,f4", "f2,m3,m7")),
)


def main() -> None:
    """Measure one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("who", "voices", "vocals", "filter"))
    parser.add_argument("--keep", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        kept = arguments.keep or Path(folder)
        kept.mkdir(parents=True, exist_ok=True)
        report = {"who": who, "voices": voices, "vocals": vocals, "filter": filtered}[arguments.what](kept)
    print(json.dumps(report, indent=1))


def who(folder: Path) -> Any:
    """Return the error rate of each recording of `WHO`, three turns for each person."""
    rows = []
    for names, gap in WHO:
        people = names.count(",") + 1
        sounds, truth = dialogue(names.split(","), 3 * people, gap)
        mono = sounds.sum(0)
        found = Resemblyzer(ResemblyzerConfig()).find(np.stack([mono, mono], 1), people)
        seconds = len(mono) / RATE
        errors = error_rate(truth, found, people, seconds)
        rows.append({"voices": names, "gap": gap, "seconds": round(seconds, 1), **errors})
    return rows


def voices(folder: Path) -> Any:
    """Return how each mouth of a video from one recording follows its own voice and the other's; also with overlaps."""
    rows = []
    for gap in (0.3, -1.5):
        sounds, _ = dialogue(["f3", "m3"], 4, gap)
        recording = write(folder / f"recording{gap:g}.wav", sounds.sum(0))
        request = Request("two people talk", str(EXAMPLES / "two.png"), (), voices=str(recording), people=2)
        plan, frames, warnings = film(request, folder)
        rows.append({"gap": gap, "own_and_other": follow(plan, frames, sounds), "warnings": warnings})
    return rows


def vocals(folder: Path) -> Any:
    """Return how a mouth follows the clean voice, if the network hears it as it is, with noise, and with music."""
    rows: dict[str, dict[str, float]] = {}
    clean = sentence(EXAMPLES_TEXT)
    for name, sound in {
        "clean": np.zeros_like(clean),
        "noise 10 dB": white(len(clean)),
        "noise 0 dB": white(len(clean)),
        "music 10 dB": music(len(clean)),
        "music 0 dB": music(len(clean)),
    }.items():
        level = -float(name.split()[1]) if sound.any() else 0.0
        path = write(folder / f"{name.replace(' ', '-')}.wav", mixed(clean, sound, level))
        for choice in ("none", "auto", "rnnoise"):
            request = Request(
                "a person talks", str(EXAMPLES / "one.png"), (Speaker(str(path)),), overrides=(f"vocals={choice}",)
            )
            plan, frames, _ = film(request, folder)
            rows.setdefault(name, {})[choice] = follow(plan, frames, clean[None])[0]["own"]
    return rows


def filtered(folder: Path) -> Any:
    """Return the SI-SDR in dB of each mixture before and after RNNoise, against the clean voice."""
    clean = sentence(EXAMPLES_TEXT)
    rows: dict[str, tuple[float | None, float]] = {"no noise": (None, si_sdr(clean, denoise(clean).voice))}
    for name, sound in (("white", white(len(clean))), ("pink", pink(len(clean))), ("music", music(len(clean)))):
        for level in (0, 10):
            before = mixed(clean, sound, -level)
            rows[f"{name} {level} dB"] = (si_sdr(clean, before), si_sdr(clean, denoise(before).voice))
    return rows


def si_sdr(clean: Floats, other: Floats) -> float:
    """Return the scale-invariant signal-to-distortion ratio in dB (Le Roux and others, 2019)."""
    target = clean * (other @ clean / (clean @ clean))
    return round(10 * float(np.log10(np.square(target).sum() / np.square(other - target).sum())), 1)


#: What the voice of `vocals` says: eight seconds with pauses.
EXAMPLES_TEXT = " ".join(TEXTS[index] for index in (0, 2))


def sentence(text: str, name: str = "f3") -> Floats:
    """Return a sentence in a voice of eSpeak NG, mono at RATE with a peak of 0.4."""
    samples, rate = Espeak(EspeakConfig()).say(text, Voice(0, name))
    found: Floats = trimmed(soxr.resample(samples, rate, RATE).astype(np.float32))
    return found * np.float32(0.4 / np.abs(found).max())


def dialogue(names: Sequence[str], turns: int, gap: float) -> tuple[Floats, list[Turn]]:
    """Return (people, samples), the voices that speak in order, and their turns. `gap`: seconds; below 0: overlap."""
    parts: list[tuple[Turn, Floats]] = []
    for index in range(turns):
        person = index % len(names)
        sound = sentence(TEXTS[index % len(TEXTS)], names[person])
        begins = max([0.3, *(turn.ends + gap for turn, _ in parts[-1:])])
        begins = max([begins, *(turn.ends for turn, _ in parts if turn.person == person)])
        parts.append((Turn(person, begins, begins + len(sound) / RATE), sound))
    sounds = np.zeros((len(names), round((max(turn.ends for turn, _ in parts) + 0.3) * RATE)), np.float32)
    for turn, sound in parts:
        first = round(turn.begins * RATE)
        sounds[turn.person, first : first + len(sound)] += sound
    return sounds, [turn for turn, _ in parts]


def error_rate(truth: Sequence[Turn], found: Sequence[Turn], people: int, seconds: float) -> dict[str, float]:
    """Return the diarisation error rate and its parts in % of the speech, without tolerance at the edges.

    "missed", "false" and "wrong": speech without anybody, silence with somebody, and speech with another person. The
    seconds of overlap in both are beside them.
    """
    spoken, heard = (_spoken(turns, people, round(seconds * 100)) for turns in (truth, found))
    count, other = spoken.sum(0), heard.sum(0)
    right = max(int((spoken & heard[list(order)]).sum()) for order in itertools.permutations(range(people)))
    missed, false = np.maximum(0, count - other).sum(), np.maximum(0, other - count).sum()
    wrong = np.minimum(count, other).sum() - right
    values = {"error": missed + false + wrong, "missed": missed, "false": false, "wrong": wrong}
    shares = {key: round(100 * float(value / count.sum()), 1) for key, value in values.items()}
    overlap = {"overlap_s": float((count > 1).sum()) / 100, "overlap_found_s": float((other > 1).sum()) / 100}
    both = {"overlap_right_s": float(((count > 1) & (other > 1)).sum()) / 100}
    return {**shares, **overlap, **both}


def _spoken(turns: Sequence[Turn], people: int, steps: int) -> npt.NDArray[np.bool_]:
    flags = np.zeros((people, steps), bool)
    for turn in turns:
        flags[turn.person, round(turn.begins * 100) : round(turn.ends * 100)] = True
    return flags


def white(length: int) -> Floats:
    """Return white noise."""
    return np.random.default_rng(0).standard_normal(length).astype(np.float32)


def pink(length: int) -> Floats:
    """Return noise whose power falls by 3 dB an octave."""
    spectrum = np.fft.rfft(np.random.default_rng(2).standard_normal(length))
    sound: Floats = np.fft.irfft(spectrum / np.sqrt(np.maximum(np.arange(len(spectrum)), 1)), length).astype(np.float32)
    return sound


def music(length: int) -> Floats:
    """Return chords with overtones, two in a second, and a drum on every beat."""
    at = np.arange(length) / RATE
    beat, since = (at * 2).astype(int), (at * 2) % 1 / 2
    roots = np.array([220.0, 174.6, 261.6, 196.0])[beat // 2 % 4]
    chords = sum(
        np.sin(2 * np.pi * roots * ratio * part * at) / part for ratio in (1, 1.26, 1.5) for part in (1, 2, 3, 4)
    )
    drums = np.random.default_rng(1).standard_normal(length) * np.exp(-since * 40) * 6
    sound: Floats = (chords * np.exp(-since) + drums).astype(np.float32)
    return sound


def mixed(voice: Floats, sound: Floats, level: float) -> Floats:
    """Return a voice with a sound whose power is `level` dB relative to the voice's."""
    if not sound.any():
        return voice
    scale = np.sqrt(np.square(voice).mean() / np.square(sound).mean()) * 10 ** (level / 20)
    found: Floats = (voice + np.float32(scale) * sound).astype(np.float32)
    return found * np.float32(min(1.0, 0.99 / np.abs(found).max()))


def write(path: Path, samples: Floats) -> Path:
    """Write mono samples at RATE to a WAV file."""
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes(np.round(samples * 32767).astype("<i2").tobytes())
    return path


def film(request: Request, folder: Path) -> tuple[Plan, npt.NDArray[np.uint8], list[str]]:
    """Return the plan, the frames, and the warnings of a video of the embedded model with the preset turbo."""
    overrides = ["model=tiny", "source=packaged", "sampler=turbo", "report.enabled=false"]
    service = EngineService([*overrides, f"sink.folder={json.dumps(str(folder))}"])
    delivery = service.generate(request)
    assert delivery.address is not None
    return delivery.plan, read_video(Path(delivery.address)), list(delivery.plan.warnings)


def follow(plan: Plan, frames: npt.NDArray[np.uint8], sounds: Floats) -> list[dict[str, float]]:
    """Return, for each mouth, the correlation of its opening with its own voice, and with the other person's."""
    opened = mouth_openings(frames, find_mouths(frames, [seat.box for seat in plan.seats]))[:, 1:]
    curves = []
    for sound in sounds:
        curve, _ = mouth_of(levelled(sound, LEVEL))
        curves.append(np.interp(times(len(frames), plan.fps), np.arange(len(curve)) / CURVE_RATE, curve, right=0.0)[1:])
    rows = []
    for person, opening in enumerate(opened):
        row = {"own": round(correlation(opening, curves[person]), 2)}
        if len(curves) == 2:
            row["other"] = round(correlation(opening, curves[1 - person]), 2)
        rows.append(row)
    return rows


if __name__ == "__main__":
    main()
