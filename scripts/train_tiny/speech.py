"""Voices for the training: what is heard, and the mouth movement that belongs to it."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import wave
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import soxr

from scripts.train_tiny.words import WORDS

Floats = npt.NDArray[np.float32]
Split = Literal["train", "held_out"]

SAMPLE_RATE = 16000
#: Points a second of the mouth's curves: dense enough to be read at any frame rate up to 30.
CURVE_RATE = 100
#: The mouth's width, 0 to 1, when nobody speaks.
REST_WIDTH = 0.4
#: Root mean square of every sentence where it is loud, before gains.
LEVEL = 0.1
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


@dataclass(frozen=True)
class Voice:
    """A voice and the mouth that makes it.

    `samples` is float32 mono at 16 kHz. `openings` and `widths` hold CURVE_RATE points a second, 0 to 1; point i is the
    mouth at i / CURVE_RATE seconds. They follow the clean speech: gains and noise are in `samples` only.
    """

    samples: Floats
    openings: Floats
    widths: Floats

    def opening(self, seconds: npt.ArrayLike) -> Floats:
        """Return how far the mouth is open (0 shut, 1 wide) at each of `seconds`; shut outside of the voice."""
        return _read(self.openings, seconds, 0.0)

    def width(self, seconds: npt.ArrayLike) -> Floats:
        """Return how wide the mouth is (0 round, 1 broad) at each of `seconds`; at rest outside of the voice."""
        return _read(self.widths, seconds, REST_WIDTH)

    def during(self, start: float, stop: float) -> Voice:
        """Return this voice, silent before `start` and from `stop` on (seconds), faded over 60 ms."""
        gate = _gate(len(self.samples), SAMPLE_RATE, start, stop)
        shown = _gate(len(self.openings), CURVE_RATE, start, stop)
        widths = REST_WIDTH + (self.widths - REST_WIDTH) * shown
        return Voice(self.samples * gate, self.openings * shown, widths.astype(np.float32))


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


def mouth_of(clean: Floats) -> tuple[Floats, Floats]:
    """Return (openings, widths) at CURVE_RATE for speech whose loud parts have the root mean square LEVEL.

    The opening follows the level, compressed as an ear does (a power of 0.7), over about 60 ms; it is 0 more than 30 dB
    below LEVEL. The width follows the spectrum's centroid between 350 and 1650 Hz, weighted by energy over 120 ms.
    """
    step = SAMPLE_RATE // CURVE_RATE
    points = len(clean) // step
    size = 512
    padded = np.pad(clean, (size // 2, size))
    windows = np.lib.stride_tricks.sliding_window_view(padded, size)[: points * step : step]
    spectrum = np.abs(np.fft.rfft(windows * np.hanning(size).astype(np.float32), axis=1)) ** 2
    energy = np.einsum("ij,ij->i", windows, windows) / size
    rms = np.sqrt(_smooth(energy, 2.5))
    opening = np.clip(((rms / (1.35 * LEVEL)) ** 0.7 - 0.1) / 0.9, 0, 1)
    power = _smooth(spectrum.sum(1), 5)
    moment = _smooth((spectrum * np.fft.rfftfreq(size, 1 / SAMPLE_RATE)).sum(1), 5)
    width = np.clip((moment / np.maximum(power, 1e-9) - 350) / 1300, 0, 1)
    voiced = np.clip(_smooth(opening, 3) / 0.15, 0, 1)
    return _smooth(opening, 1).astype(np.float32), (REST_WIDTH + voiced * (width - REST_WIDTH)).astype(np.float32)


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
    said = subprocess.run(command, check=True, capture_output=True).stdout
    with wave.open(io.BytesIO(said)) as file:
        rate = file.getframerate()
        heard = np.frombuffer(file.readframes(len(said)), np.int16)
    resampled: npt.NDArray[np.int16] = soxr.resample(heard, rate, SAMPLE_RATE)
    loud = np.flatnonzero(np.abs(resampled.astype(np.int32)) > 200)
    return resampled[loud[0] : loud[-1] + 1] if len(loud) else resampled[:0]


def _level(heard: npt.NDArray[np.int16]) -> Floats:
    samples: Floats = heard.astype(np.float32) / np.float32(32768)
    blocks = samples[: len(samples) // 320 * 320].reshape(-1, 320)
    powers = (blocks**2).mean(1)
    loud = powers[powers > 0.05 * powers.max(initial=0)]
    if not len(loud):
        return samples
    return (samples * (LEVEL / float(np.sqrt(loud.mean())))).astype(np.float32)


def _smooth(curve: npt.NDArray[np.floating], sigma: float) -> npt.NDArray[np.float64]:
    reach = int(3 * sigma + 1)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    return np.convolve(np.pad(curve, reach, mode="edge"), kernel / kernel.sum(), "valid")


def _read(curve: Floats, seconds: npt.ArrayLike, outside: float) -> Floats:
    position = np.asarray(seconds, np.float64) * CURVE_RATE
    return np.interp(position, np.arange(len(curve)), curve, left=outside, right=outside).astype(np.float32)


def _gate(length: int, rate: int, start: float, stop: float) -> Floats:
    time = np.arange(length) / rate
    return np.clip(np.minimum(time - start, stop - time) / 0.06, 0, 1).astype(np.float32)
