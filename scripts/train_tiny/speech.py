"""Voices for the training: what is heard, and the mouth movement that belongs to it."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import soxr

from engine.evaluation.voices import CURVE_RATE, LEVEL, REST_WIDTH, SAMPLE_RATE, Floats, Voice, mouth_of
from scripts.train_tiny.words import WORDS

Split = Literal["train", "held_out"]

#: Synthesised sentences lie here, one int16 file each, once for ever.
CACHE = Path(__file__).parent / "data" / "speech"

_SPEAKERS = {"train": 160, "held_out": 40}
_SENTENCES = 20
_LANGUAGES = {
    "train": ("en-us", "en-us", "en-gb", "en-gb", "de", "fr", "es", "it", "pl", "pt"),
    "held_out": ("en-us", "en-gb", "de", "fr", "es", "nl", "sv"),
}
#: eSpeak NG's variants of a voice: throats, so to speak. No variant is in both splits.
_VARIANTS = {
    "train": (
        *("m1", "m2", "m3", "m4", "m6", "m8", "f1", "f2", "f3", "Andy", "Annie", "Alex", "Gene", "Jacky", "Lee"),
        *("Mario", "Michael", "Mike", "anika", "antonio", "aunty", "belinda", "benjamin", "boris", "caleb", "david"),
        *("ed", "edward", "grandpa", "iven", "john", "kaukovalta", "linda", "marcelo", "max", "miguel", "pablo"),
        *("paul", "pedro", "quincy", "rob", "robert", "sandro", "steph", "travis", "victor", "zac"),
    ),
    "held_out": ("m5", "m7", "f4", "f5", "Alicia", "Henrique", "Marco", "Diogo", "grandma", "michel", "shelby", "adam"),
}


#: Makes the voice of (seed, seconds, split); `say` is the one for training.
Speak = Callable[[int, float, Split], Voice]


def silence(seconds: float) -> Voice:
    """Return a voice of true zeros."""
    points = round(seconds * CURVE_RATE)
    return Voice(
        np.zeros(round(seconds * SAMPLE_RATE), np.float32),
        np.zeros(points, np.float32),
        np.full(points, REST_WIDTH, np.float32),
    )


def say(seed: int, seconds: float, split: Split = "train", *, cache: Path | None = CACHE) -> Voice:
    """Let one of the split's speakers say random sentences for `seconds`, with pauses, gain and perhaps noise.

    Sentences come from a fixed set of each speaker, so that eSpeak NG is asked once for each and `cache` answers from
    then on (None: no cache). Raises FileNotFoundError without the command espeak-ng.
    """
    rng = np.random.default_rng((17, split == "held_out", seed))
    speaker = int(rng.integers(_SPEAKERS[split]))
    clean = np.zeros(round(seconds * SAMPLE_RATE), np.float32)
    # A clip may begin in the middle of a word: so do the windows of a long video.
    at = round(rng.uniform(-1.4, 0.5) * SAMPLE_RATE)
    while at < len(clean):
        sentence = _sentence(split, speaker, int(rng.integers(_SENTENCES)), cache)
        gain = 10 ** (rng.uniform(-1.5, 1.5) / 20)
        first, last = max(at, 0), min(at + len(sentence), len(clean))
        if first < last:
            clean[first:last] = gain * sentence[first - at : last - at]
        at += len(sentence) + round(float(rng.choice((0.08, 0.15, 0.3, 0.5, 0.8, 1.2))) * SAMPLE_RATE)
    return voice_of(clean, rng)


def synthetic(seed: int, seconds: float, split: Split = "train") -> Voice:
    """Babble without eSpeak NG: syllables of a buzzing source through two resonances, with pauses; for tests."""
    rng = np.random.default_rng((18, split == "held_out", seed))
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    level, brightness = np.zeros_like(time), np.zeros_like(time)
    start = rng.uniform(0, 0.2)
    while start < seconds:
        length, loud, bright = rng.uniform(0.1, 0.25), rng.uniform(0.3, 1), rng.uniform(0, 1)
        inside = np.clip((time - start) / length, 0, 1)
        level += loud * np.sin(np.pi * inside) ** 2
        brightness += bright * (np.sin(np.pi * inside) > 0)
        start += length + (rng.uniform(0.3, 0.8) if rng.random() < 0.2 else rng.uniform(0, 0.05))
    pitch = rng.uniform(90, 220)
    low = sum(np.sin(2 * np.pi * pitch * k * time) / k for k in range(1, 6))
    high = sum(np.sin(2 * np.pi * pitch * k * time) / 4 for k in range(9, 17))
    return voice_of((LEVEL * level * (low * (1 - brightness) + high * brightness)).astype(np.float32), rng)


def voice_of(clean: Floats, rng: np.random.Generator) -> Voice:
    """Return the voice of `clean` speech (float32, 16 kHz) as a recording: another gain, and often some noise."""
    gain = 10 ** (rng.uniform(-14, 3) / 20)
    noise = rng.standard_normal(len(clean)).astype(np.float32)
    if rng.random() < 0.5:
        noise = np.convolve(noise, np.full(8, 8**-0.5, np.float32), "same")
    below = rng.uniform(30, 60) if rng.random() < 0.6 else 80.0
    samples = gain * (clean + LEVEL * 10 ** (-below / 20) * noise)
    return Voice(np.clip(samples, -1, 1).astype(np.float32), *mouth_of(clean))


def _sentence(split: Split, speaker: int, number: int, cache: Path | None) -> Floats:
    rng = np.random.default_rng((19, split == "held_out", speaker))
    language = str(rng.choice(_LANGUAGES[split]))
    voice = f"{language}+{rng.choice(_VARIANTS[split])}"
    speed, pitch = int(rng.integers(115, 215)), int(rng.integers(15, 86))
    words = np.random.default_rng((20, split == "held_out", speaker, number))
    text = " ".join(words.choice(WORDS[language], int(words.integers(2, 8))))
    command = ("espeak-ng", "-v", voice, "-s", str(speed), "-p", str(pitch), "--stdout", text)
    if cache is None:
        return _level(_espeak(command))
    path = cache / (hashlib.sha256("\n".join(command).encode()).hexdigest()[:20] + ".npy")
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}")
        with part.open("wb") as file:
            np.save(file, _espeak(command))
        part.replace(path)
    return _level(np.load(path))


def _espeak(command: tuple[str, ...]) -> npt.NDArray[np.int16]:
    """Return what eSpeak NG says, at 16 kHz, without the silence around it."""
    wav = subprocess.run(command, check=True, capture_output=True).stdout
    with wave.open(io.BytesIO(wav)) as file:
        rate = file.getframerate()
        samples = np.frombuffer(file.readframes(len(wav)), np.int16)
    resampled: npt.NDArray[np.int16] = soxr.resample(samples, rate, SAMPLE_RATE)
    loud = np.flatnonzero(np.abs(resampled.astype(np.int32)) > 200)
    return resampled[loud[0] : loud[-1] + 1] if len(loud) else resampled[:0]


def _level(pcm: npt.NDArray[np.int16]) -> Floats:
    samples: Floats = pcm.astype(np.float32) / np.float32(32768)
    blocks = samples[: len(samples) // 320 * 320].reshape(-1, 320)
    powers = (blocks**2).mean(1)
    loud = powers[powers > 0.05 * powers.max(initial=0)]
    if not len(loud):
        return samples
    return (samples * (LEVEL / float(np.sqrt(loud.mean())))).astype(np.float32)
