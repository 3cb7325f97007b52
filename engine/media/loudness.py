"""Integrated loudness of a voice (ITU-R BS.1770), as pyloudnorm measures it, without scipy."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.float32]

#: Seconds of the blocks whose loudness is gated, and between the beginnings of two.
_GATE, _STEP = 0.4, 0.1
#: Quieter blocks are ignored: LUFS, and LU below the mean of the others.
_ABSOLUTE, _RELATIVE = -70.0, -10.0
#: Samples of one Fourier transform, and seconds of it into which a block's response may run: after 0.5 s both filters
#: have decayed far below the last bit of a float64.
_TRANSFORM, _DECAY = 1 << 17, 0.5


def integrated_loudness(voice: Samples, rate: int) -> float:
    """Return the loudness of mono samples in LUFS; -inf for silence.

    A voice shorter than 0.4 s is measured as if it were repeated. Sources: ITU-R BS.1770-4, equations 1 to 7;
    pyloudnorm 0.2, meter.py and iirfilter.py, which approximates the weighting by two filters of R. Bristow-Johnson's
    "Cookbook formulae for audio equalizer biquad filter coefficients".
    """
    if not voice.any():
        return -math.inf
    block = math.ceil(_GATE * rate)
    if len(voice) < block:
        voice = np.tile(voice, math.ceil(block / len(voice)))
    voice = voice.copy()
    for stage in (_high_shelf(rate, 1500, 4, 1 / math.sqrt(2)), _high_pass(rate, 38, 0.5)):
        begin = 0
        for filtered in _filter(stage, voice, rate):
            voice[begin : begin + len(filtered)] = filtered
            begin += len(filtered)
    # In float32, as pyloudnorm does.
    energies = np.array(
        [np.sum(np.square(part)) * np.float32(1 / (_GATE * rate)) for part in _blocks(voice, rate)], float
    )
    loud = energies[_lufs(energies) >= _ABSOLUTE]
    if not loud.size:
        return -math.inf
    loud = loud[_lufs(loud) > _lufs(loud.mean()) + _RELATIVE]
    return float(_lufs(loud.mean()))


def _lufs(energy: npt.ArrayLike) -> npt.NDArray[np.float64]:
    with np.errstate(divide="ignore"):
        return np.asarray(-0.691 + 10 * np.log10(energy))


def _blocks(voice: Samples, rate: int) -> Iterator[Samples]:
    for number in range(round((len(voice) / rate - _GATE) / _STEP) + 1):
        begin = _GATE * (number * 0.25)
        yield voice[int(begin * rate) : int(_GATE * (number * 0.25 + 1) * rate)]


def _high_shelf(rate: int, frequency: float, gain: float, quality: float) -> tuple[list[float], list[float]]:
    """Return numerator and denominator, by powers of 1/z, of a filter that raises what is above `frequency` Hz."""
    a, w = 10 ** (gain / 40), 2 * math.pi * frequency / rate
    cosine, alpha = math.cos(w), 2 * math.sqrt(a) * math.sin(w) / (2 * quality)
    plus, minus = (a + 1) + (a - 1) * cosine, (a + 1) - (a - 1) * cosine
    numerator = [a * (plus + alpha), -2 * a * ((a - 1) + (a + 1) * cosine), a * (plus - alpha)]
    return numerator, [minus + alpha, 2 * ((a - 1) - (a + 1) * cosine), minus - alpha]


def _high_pass(rate: int, frequency: float, quality: float) -> tuple[list[float], list[float]]:
    """Return numerator and denominator, by powers of 1/z, of a filter that removes what is below `frequency` Hz."""
    w = 2 * math.pi * frequency / rate
    cosine, alpha = math.cos(w), math.sin(w) / (2 * quality)
    return [(1 + cosine) / 2, -(1 + cosine), (1 + cosine) / 2], [1 + alpha, -2 * cosine, 1 - alpha]


def _filter(stage: tuple[list[float], list[float]], voice: Samples, rate: int) -> Iterator[npt.NDArray[np.float64]]:
    """Yield the filtered voice by blocks: each is convolved with the whole response by Fourier transforms."""
    numerator, denominator = (np.fft.rfft(part, _TRANSFORM) for part in stage)
    step = _TRANSFORM - math.ceil(_DECAY * rate)
    carried = np.zeros(_TRANSFORM - step)
    for begin in range(0, len(voice), step):
        block = voice[begin : begin + step].astype(np.float64)
        response = np.fft.irfft(np.fft.rfft(block, _TRANSFORM) * numerator / denominator, _TRANSFORM)
        response[: len(carried)] += carried
        carried = response[step:]
        yield response[: len(block)]
