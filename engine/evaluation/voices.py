"""Speech -> opening and width of the mouth: the reference for training and measuring drawn people."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

SAMPLE_RATE = 16000
#: Points per second of the mouth's curves: dense enough for any frame rate up to 30.
CURVE_RATE = 100
#: The mouth's width, 0 to 1, when nobody speaks.
REST_WIDTH = 0.4
#: Root mean square of the loud parts of every sentence, before gains.
LEVEL = 0.1


@dataclass(frozen=True)
class Voice:
    """A voice and the curves of its mouth.

    `samples` is float32 mono at 16 kHz. `openings` and `widths` have CURVE_RATE points per second, 0 to 1; point i is
    the mouth at i / CURVE_RATE seconds. They follow the clean speech: gains and noise are in `samples` only.
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
        audible = _gate(len(self.openings), CURVE_RATE, start, stop)
        widths = REST_WIDTH + (self.widths - REST_WIDTH) * audible
        return Voice(self.samples * gate, self.openings * audible, widths.astype(np.float32))


def mouth_of(clean: Floats) -> tuple[Floats, Floats]:
    """Return (openings, widths) at CURVE_RATE for speech whose loud parts have the root mean square LEVEL.

    The opening follows the level, compressed like hearing (a power of 0.7), over about 60 ms; it is 0 at more than 30
    dB below LEVEL. The width follows the spectrum's centroid between 350 and 1650 Hz, weighted by energy over 120 ms.
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


def loudness(samples: Floats) -> float:
    """Return the root mean square of speech's loud parts: 20 ms with more than a twentieth of the loudest power."""
    pieces = samples[: len(samples) // 320 * 320].reshape(-1, 320)
    # In steps of a minute: the squares of an hour would be as large as the voice.
    powers = np.concatenate([np.zeros(0, np.float32), *(_powers(pieces[at : at + 3000]) for at in _steps(len(pieces)))])
    loud = powers[powers > 0.05 * powers.max(initial=0)]
    return float(np.sqrt(loud.mean())) if len(loud) else 0.0


def levelled(samples: Floats, level: float) -> Floats:
    """Scale speech so that its loud parts (see `loudness`) have RMS `level`."""
    loud = loudness(samples)
    return (samples * (level / loud)).astype(np.float32) if loud else samples


def _powers(pieces: Floats) -> Floats:
    powers: Floats = (pieces**2).mean(1)
    return powers


def _steps(count: int) -> range:
    return range(0, count, 3000)


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
