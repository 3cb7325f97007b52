"""How loud the voices are in the course of a video, decoded for the pauses between which its windows are cut."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from engine.components import CancelToken
from engine.data import Cut, Loudness
from engine.media.audio import LOUDNESS_SECONDS, channel_of, within
from engine.media.pieces import Damage, pieces

#: Values per second.
RATE = 100
#: Lowest level in dB.
FLOOR = -60.0
#: Share of a voice's mean power below which a value does not count as speech (10 dB, as in EBU R 128).
_GATE = 0.1

Levels = npt.NDArray[np.float32]


def read_loudness(
    files: Sequence[Path | None],
    cuts: Sequence[Cut | None],
    spans: Sequence[tuple[float, float]],
    seconds: float,
    *,
    cancel: CancelToken | None = None,
) -> Loudness:
    """Decode the voices and return how loud they are in the first `seconds` of the video, in steps of 10 ms.

    `files`, `cuts` and `spans` are as for `audio.read_sounds`. At each time the loudest voice counts, each relative to
    its own level while it speaks, so that a quiet speaker counts as much as a loud one. A file is decoded once for each
    voice in it, only as far as the video needs and in pieces: a voice of an hour takes 3 MB. Raises RequestError about
    the speaker, and Cancelled.
    """
    levels = np.full(max(1, math.ceil(seconds * RATE)), FLOOR, np.float32)
    for index, (path, cut, (begin, _)) in enumerate(zip(files, cuts, spans, strict=True)):
        if path is None or cut is None or begin >= seconds:
            continue
        needed = min(cut.seconds, max(seconds - begin, LOUDNESS_SECONDS))
        power = _power(path, cut, needed, f"request.speakers[{index}].audio", cancel)
        part = levels[round(begin * RATE) :]
        heard = _relative(power)[: len(part)]
        np.maximum(part[: len(heard)], heard, out=part[: len(heard)])
    return Loudness(RATE, levels)


def loudness_at(loudness: Loudness, times: npt.NDArray[np.float64], reach: float) -> Levels:
    """Return the highest level within `reach` seconds of each of `times`; nothing is heard outside of the video."""
    around = math.ceil(reach * loudness.rate)
    end = math.ceil((float(times.max(initial=0.0)) + reach) * loudness.rate) + 1
    padded = np.full(max(end, len(loudness.levels)) + 2 * around, FLOOR, np.float32)
    padded[around : around + len(loudness.levels)] = loudness.levels
    highest = np.lib.stride_tricks.sliding_window_view(padded, 2 * around + 1).max(axis=1)
    centers = np.clip(np.round(times * loudness.rate).astype(int), 0, len(highest) - 1)
    found: Levels = highest[centers]
    return found


def _power(path: Path, cut: Cut, seconds: float, field: str, cancel: CancelToken | None) -> npt.NDArray[np.float64]:
    """Return the power of a voice in each 10 ms, without its mean, which is not heard."""
    count = math.ceil(seconds * RATE) + 1
    samples, sums, squares = np.zeros(count), np.zeros(count), np.zeros(count)
    until = cut.start + seconds
    for piece in pieces(path, cut.links, start=cut.start, until=until, damage=Damage(), field=field, cancel=cancel):
        time, block = within(piece, channel_of(piece, cut.channel), cut.start, seconds)
        if not len(block):
            continue
        # Channels are added as powers: opposite phases do not cancel each other.
        bins = np.clip(((time + np.arange(len(block)) / piece.rate) * RATE).astype(int), 0, count - 1)
        first, last = int(bins[0]), int(bins[-1]) + 1
        for channel in block.T.astype(np.float64):
            samples[first:last] += np.bincount(bins - first, minlength=last - first)
            sums[first:last] += np.bincount(bins - first, channel, minlength=last - first)
            squares[first:last] += np.bincount(bins - first, channel**2, minlength=last - first)
    heard = np.maximum(samples, 1)
    power: npt.NDArray[np.float64] = np.maximum(squares / heard - (sums / heard) ** 2, 0)
    return power


def _relative(power: npt.NDArray[np.float64]) -> Levels:
    """Return power in dB relative to the mean power of the speech in it, from `FLOOR`."""
    speech = power[power >= _GATE * power.mean()] if power.any() else np.ones(1)
    with np.errstate(divide="ignore"):
        levels = 10 * np.log10(power / speech.mean())
    found: Levels = np.maximum(levels, FLOOR).astype(np.float32)
    return found
