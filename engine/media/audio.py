"""Voice files -> what the network hears and what the viewer hears."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import soxr

from engine.components import CancelToken
from engine.data import AudioType, Cut
from engine.media.pieces import Damage, Piece, Samples, pieces
from engine.media.tracks import inspect

#: Hz of what the network hears (mono) and of the sound track (stereo).
VOICE_RATE, SOUND_RATE = 16_000, 48_000
#: Integrated loudness of a voice as the network hears it.
LOUDNESS = -23.0

Layout = Literal["mono", "stereo"]

#: Seconds of a voice that are listened to at least for its loudness.
LISTENED = 30.0
#: Samples in one step where an array is walked without a copy of all of it.
_BLOCK = 1 << 18
#: ITU-R BS.1770 measures blocks of 0.4 s.
_GATE = 0.4
#: The meter leaves out what is quieter, in LUFS.
_GATED = -70
#: Largest sample of a levelled voice (at -23 LUFS) below which it is silence: -60 dB.
_HEARD = 1e-3
#: The mean of two channels with less of the louder one's energy has lost the voice: they are out of phase. Alike
#: channels keep all of it, a voice on one side a quarter.
_FAR_LESS = 0.1
#: More than two channels whose mix has less of the loudest one's energy: the standard mix of 5.1 leaves 3 to 9 %.
_LOST = 0.005


@dataclass(frozen=True)
class Sounds:
    """What the network hears and what the viewer hears."""

    #: float32 mono 16 kHz, one a speaker, each round(seconds * 16000) samples; zeros for a silent speaker.
    voices: tuple[Samples, ...]
    #: float32 stereo 48 kHz, (round(seconds * 48000), 2).
    track: Samples
    #: What changes the result, a sentence each.
    warnings: tuple[str, ...]


def set_loudness(voice: Samples, measured: float, target: float = LOUDNESS) -> Samples:
    """Scale mono samples of `measured` LUFS to `target` LUFS; silence (beyond -100 LUFS) stays as it is.

    Source: MultiTalk, generate_multitalk.py, loudness_norm.
    """
    if not math.isfinite(measured) or abs(measured) > 100:
        return voice
    return voice * np.float32(10 ** ((target - measured) / 20))


def loudness(voice: Samples, rate: int = VOICE_RATE) -> float:
    """Return the integrated loudness of mono samples in LUFS (ITU-R BS.1770, by pyloudnorm); -inf for silence.

    A voice shorter than the meter's 0.4 s block is measured as if it were repeated.
    """
    if not voice.any():
        return -math.inf
    import pyloudnorm  # brings scipy.signal, a second of start-up

    block = math.ceil(_GATE * rate)
    if len(voice) < block:
        voice = np.tile(voice, math.ceil(block / len(voice)))
    meter = pyloudnorm.Meter(rate)
    voice = voice.copy()
    for stage in meter._filters.values():
        _weight(stage, voice)
    # As the meter does it, but a block at a time: its own filters take float64 copies of all of an hour.
    meter._filters = {}
    return float(meter.integrated_loudness(voice))


def _weight(stage: Any, voice: Samples) -> None:
    from scipy.signal import lfilter

    state = np.zeros(max(len(stage.a), len(stage.b)) - 1)
    for i in range(0, len(voice), _BLOCK):
        found, state = lfilter(stage.b, stage.a, voice[i : i + _BLOCK], zi=state)
        voice[i : i + _BLOCK] = stage.passband_gain * found


def voice_spans(
    seconds: Sequence[float], audio_type: AudioType, delays: Sequence[float] = ()
) -> tuple[tuple[float, float], ...]:
    """Return (begin, end) in seconds of each voice: "para" all from 0, "add" one after the other.

    `delays` are seconds of silence before each voice, by default none.
    """
    spans, clock = [], 0.0
    for length, delay in zip(seconds, delays or [0.0] * len(seconds), strict=True):
        begin = delay if audio_type == "para" else clock + delay
        clock = begin + length
        spans.append((begin, clock))
    return tuple(spans)


def read_sounds(
    files: Sequence[Path | None],
    cuts: Sequence[Cut | None],
    spans: Sequence[tuple[float, float]],
    seconds: float,
    *,
    most: float | None = None,
    cancel: CancelToken | None = None,
) -> Sounds:
    """Decode the voices once, for the network and for the sound track, and no more of them than the video needs.

    `cuts` say what is taken of each file, `spans` where it goes, `seconds` how long the video is. Each voice is brought
    to -23 LUFS, measured over what the video needs of it and at least its first `LISTENED` seconds. The sound track
    keeps the loudness of the files; only a sum that would clip is scaled down as a whole. A speaker without a file is
    silent. Raises RequestError about the speaker, and Cancelled.

    With `most`, for a plan: no more than these seconds of each voice are decoded, only the warnings are of use.
    """
    channels: dict[int, int] = {}
    while True:
        mix = np.zeros((0 if most else round(seconds * SOUND_RATE), 2), np.float32)
        voices = [
            _Voice(index, cut, begin, seconds, mix, most, channels.get(index, cut.channel))
            for index, (cut, (begin, _)) in enumerate(zip(cuts, spans, strict=True))
            if cut is not None
        ]
        told = _hear(files, [voice for voice in voices if voice.begin < seconds], cancel)
        lost = {voice.index: channel for voice in voices if (channel := voice.lost()) is not None}
        if not lost:
            break
        # Rare: the standard mix of 5.1 and the like leaves out a channel, or its channels cancel each other.
        channels |= lost
    _limit(mix)
    tracks = [np.zeros(0 if most else round(seconds * VOICE_RATE), np.float32) for _ in files]
    for voice in voices:
        heard, warnings = voice.finish()
        told += [(voice.index, text) for text in warnings]
        part = tracks[voice.index][round(voice.begin * VOICE_RATE) :]
        part[: len(heard)] = heard[: len(part)]
    told.sort(key=lambda entry: entry[0])
    return Sounds(tuple(tracks), mix, tuple(f"speakers[{index}]: {text}" for index, text in told))


def decode(
    path: Path, rate: int, layout: Layout, *, cut: Cut | None = None, field: str = "request.speakers"
) -> Samples:
    """Decode to float32 at `rate` Hz: (samples,) for "mono" (the mean of the channels), (samples, 2) for "stereo".

    `cut` is what is taken of the file, by default all. Raises RequestError about `field`.
    """
    cut = cut or inspect(path, field=field).cut
    lane = _Lane(rate, np.zeros((round(cut.seconds * rate) + 1, 1 if layout == "mono" else 2), np.float32))
    until = cut.start + cut.seconds
    for piece in pieces(path, cut.links, start=cut.start, until=until, damage=Damage(), field=field):
        time, block = _within(piece, _shown(piece, cut.channel), cut.start, cut.seconds)
        lane.feed(time, piece.rate, _to_mono(block) if layout == "mono" else _to_stereo(block), apart=piece.apart)
    found = lane.finish()
    return found[:, 0] if layout == "mono" else found


# --- one voice of a video ---------------------------------------------------------------------------------------------


class _Voice:
    """Takes the pieces of a file that belong to one speaker."""

    def __init__(
        self,
        index: int,
        cut: Cut,
        begin: float,
        seconds: float,
        mix: Samples,
        most: float | None,
        channel: int | None,
    ) -> None:
        self.index, self.cut, self.begin, self.channel = index, cut, begin, channel
        needed = min(cut.seconds, max(seconds - begin, LISTENED))
        #: Seconds of the voice that are decoded, and of them those that the video has.
        self.take = needed if most is None else min(needed, most)
        self.shown = min(self.take, seconds - begin)
        self._all = self.take == needed
        # The mean of the channels, and half their difference: left and right are their sum and their difference.
        self._mean = _Lane(VOICE_RATE, np.zeros((round(self.take * VOICE_RATE), 1), np.float32))
        self._half: _Lane | None = None
        self._track = _Lane(SOUND_RATE, mix[round(begin * SOUND_RATE) :])
        # Energy of each of more than two channels, and of both sides of their mix.
        self._raw = np.zeros(0)
        self._mixed = np.zeros(2)

    def feed(self, piece: Piece) -> None:
        """Take what is wanted of a piece."""
        time, block = _within(piece, _shown(piece, self.channel), self.cut.start, self.take)
        if not len(block):
            return
        if self.channel is None and piece.raw.shape[1] > 2:
            self._compare(_within(piece, piece.raw, self.cut.start, self.take)[1], block, piece.rate)
        self._mean.feed(time, piece.rate, _to_mono(block), apart=piece.apart)
        if block.shape[1] == 2:
            if self._half is None:
                self._half = _Lane(VOICE_RATE, np.zeros_like(self._mean.into))
                # The lane begins where the first of two channels do.
                self._half.move(time)
            self._half.feed(time, piece.rate, np.float32(0.5) * (block[:, :1] - block[:, 1:]), apart=piece.apart)
        self._track.feed(time, piece.rate, _to_stereo(block), apart=piece.apart)

    def lost(self) -> int | None:
        """Return the loudest channel, from 1, where hardly anything of more than two is left in their mix."""
        if not len(self._raw) or self._mixed.max() >= _LOST * self._raw.max():
            return None
        return int(self._raw.argmax()) + 1

    def finish(self) -> tuple[Samples, list[str]]:
        """Return the voice as the network hears it, float32 mono at 16 kHz, and what to warn of."""
        told = []
        if self.channel != self.cut.channel:
            told.append(f"channel {self.channel} alone is heard: hardly anything is left of it where all are mixed")
        self._track.finish()
        voice = self._mean.finish()[:, 0]
        if self._half is not None:
            half = self._half.finish()[: len(voice), 0]
            if _cancels(voice[: len(half)], half):
                voice = half
                told.append("left and right cancel each other (opposite phase), so their difference is heard instead")
        if self.shown <= 0:
            return voice, [*told, f"the voice begins at {self.begin:.2f} s, when the video is over"]
        loud = loudness(voice)
        voice = set_loudness(voice, loud)
        if not self._all:
            # More of it is decoded for the video than for its plan.
            return voice, told
        if not voice.any():
            told.append("the voice is silent, so this person will not be seen to speak")
        elif not math.isfinite(loud):
            told.append(f"the voice is below {_GATED} LUFS, too quiet to be heard, so this person will not speak")
        elif np.abs(voice[: max(1, round(self.shown * VOICE_RATE))]).max() < _HEARD:
            told.append(f"the voice is silent in the {self.shown:.2f} s of it that the video has")
        return voice, told

    def _compare(self, raw: Samples, mixed: Samples, rate: int) -> None:
        energy = np.square(raw, dtype=np.float64).sum(axis=0) / rate
        if len(self._raw) != len(energy):
            self._raw, self._mixed = np.zeros(len(energy)), np.zeros(2)
        self._raw += energy
        self._mixed += np.square(mixed, dtype=np.float64).sum(axis=0) / rate


def _hear(files: Sequence[Path | None], voices: Sequence[_Voice], cancel: CancelToken | None) -> list[tuple[int, str]]:
    """Let each of `voices` hear its file, each file once; return (index of the speaker, what to warn of)."""
    told = []
    groups: dict[object, list[_Voice]] = {}
    for voice in voices:
        groups.setdefault((files[voice.index], voice.cut.links), []).append(voice)
    for group in groups.values():
        path = files[group[0].index]
        assert path is not None, "what is cut has a file"
        damage = Damage()
        for piece in pieces(
            path,
            group[0].cut.links,
            start=min(voice.cut.start for voice in group),
            until=max(voice.cut.start + voice.take for voice in group),
            damage=damage,
            field=f"request.speakers[{group[0].index}].audio",
            cancel=cancel,
        ):
            for voice in group:
                voice.feed(piece)
        told += [(voice.index, text) for voice in group for text in damage.told()]
    return told


def _cancels(mean: Samples, half: Samples) -> bool:
    """Whether the mean of two channels has far less energy than the louder one of them."""
    # Left and right are mean + half and mean - half.
    of_mean, of_half, both = _product(mean, mean), _product(half, half), _product(mean, half)
    return of_mean < _FAR_LESS * (of_mean + of_half + 2 * abs(both))


def _product(one: Samples, other: Samples) -> float:
    return math.fsum(float(np.dot(one[i : i + _BLOCK], other[i : i + _BLOCK])) for i in range(0, len(one), _BLOCK))


def _limit(mix: Samples) -> None:
    peak = max((float(np.abs(mix[i : i + _BLOCK]).max()) for i in range(0, len(mix), _BLOCK)), default=0.0)
    if peak > 1:
        mix /= np.float32(peak)


# --- samples in their place -------------------------------------------------------------------------------------------


class _Lane:
    """Brings blocks to one rate and adds them to an array, (samples, channels), each where it belongs."""

    def __init__(self, rate: int, into: Samples) -> None:
        self.into = into
        self._rate = rate
        self._at = self._given = 0
        self._resampler: soxr.ResampleStream | None = None

    def feed(self, time: float, given: int, block: Samples, *, apart: bool) -> None:
        """Take (samples, channels) at `given` Hz that begin at `time`; `apart`: not directly after those before."""
        if self._at >= len(self.into) or not len(block):
            return
        if apart or given != self._given:
            self.finish()
            self.move(time)
            self._given = given
            if given != self._rate:
                channels = block.shape[1]
                self._resampler = soxr.ResampleStream(given, self._rate, channels, dtype="float32", quality="HQ")
        self._put(block if self._resampler is None else self._resampler.resample_chunk(block))

    def move(self, time: float) -> None:
        """Go on at `time`, if that is not behind."""
        self._at = max(self._at, round(time * self._rate))

    def finish(self) -> Samples:
        """Add what the resampler still holds, and return the array up to its last sample."""
        resampler, self._resampler, self._given = self._resampler, None, 0
        if resampler is not None:
            self._put(resampler.resample_chunk(np.zeros((0, self.into.shape[1]), np.float32), last=True))
        return self.into[: self._at]

    def _put(self, block: Samples) -> None:
        part = self.into[self._at : self._at + len(block)]
        part += block[: len(part)]
        self._at += len(block)


def _within(piece: Piece, block: Samples, start: float, seconds: float) -> tuple[float, Samples]:
    """Return what of a piece's samples lies in `seconds` from `start` on, and where that begins, from `start`."""
    first = max(0, round((start - piece.time) * piece.rate))
    last = max(0, round((start + seconds - piece.time) * piece.rate))
    return piece.time + first / piece.rate - start, block[first:last]


def _shown(piece: Piece, channel: int | None) -> Samples:
    if channel is None:
        return piece.mixed
    # A part of the file that has fewer channels.
    number = min(channel, piece.raw.shape[1]) - 1
    return piece.raw[:, number : number + 1]


def _to_mono(block: Samples) -> Samples:
    return np.ascontiguousarray(block.mean(axis=1, dtype=np.float32, keepdims=True))


def _to_stereo(block: Samples) -> Samples:
    return np.ascontiguousarray(np.broadcast_to(block, (len(block), 2)))
