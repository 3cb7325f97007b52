"""Voice files -> mono voices for the network and a stereo sound track for the video."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import soxr

from engine.components import CancelToken
from engine.data import AudioType, Cut
from engine.media.loudness import integrated_loudness
from engine.media.pieces import Damage, Piece, Samples, pieces
from engine.media.tracks import inspect

#: Sample rates in Hz: of the voices for the network (mono) and of the sound track (stereo).
VOICE_RATE, SOUND_RATE = 16_000, 48_000
#: Integrated loudness of a voice for the network, LUFS.
LOUDNESS = -23.0

Layout = Literal["mono", "stereo"]

#: Seconds of a voice, at least, over which its loudness is measured.
LOUDNESS_SECONDS = 30.0
#: Samples per step where a long array is processed without a full copy.
_BLOCK = 1 << 18
#: The meter ignores quieter blocks, LUFS.
_GATED = -70
#: A voice at -23 LUFS whose largest sample is below this is silent: -60 dB.
_AUDIBLE = 1e-3
#: If the mean of two channels has less than this share of the louder channel's energy, they are out of phase and cancel
#: each other. Equal channels keep all energy, a voice on one side a quarter.
_FAR_LESS = 0.1
#: If the mix of more than two channels has less than this share of the loudest one's energy, the mix lost the voice:
#: the standard mix of 5.1 keeps 3 to 9 %.
_LOST = 0.005


@dataclass(frozen=True)
class Sounds:
    """The voices for the network and the sound track of the video."""

    #: float32 mono 16 kHz, one per speaker, each round(seconds * 16000) samples; zeros for a silent speaker.
    voices: tuple[Samples, ...]
    #: float32 stereo 48 kHz, (round(seconds * 48000), 2).
    track: Samples
    #: Things that change the result, one sentence each.
    warnings: tuple[str, ...]


def set_loudness(voice: Samples, current: float, target: float = LOUDNESS) -> Samples:
    """Scale mono samples of `current` LUFS to `target` LUFS; silence (below -100 LUFS) is unchanged.

    Source: MultiTalk, generate_multitalk.py, loudness_norm.
    """
    if not math.isfinite(current) or abs(current) > 100:
        return voice
    return voice * np.float32(10 ** ((target - current) / 20))


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
    """Decode the voices once, for the network and for the sound track, only as much as the video needs.

    `cuts` are the part of each file that is used, `spans` its begin and end in the video, `seconds` the length of the
    video. Each voice is scaled to -23 LUFS, measured over the part that the video needs and at least its first
    `LOUDNESS_SECONDS`. The sound track keeps the loudness of the files; only a sum that would clip is scaled down as a
    whole. A speaker without a file is silent. Raises RequestError about the speaker, and Cancelled.

    With `most`, for a plan, at most these seconds of each voice are decoded, and only the warnings are meaningful.
    """
    channels: dict[int, int] = {}
    while True:
        mix = np.zeros((0 if most else round(seconds * SOUND_RATE), 2), np.float32)
        voices = [
            _Voice(index, cut, begin, seconds, mix, most, channels.get(index, cut.channel))
            for index, (cut, (begin, _)) in enumerate(zip(cuts, spans, strict=True))
            if cut is not None
        ]
        warnings_by_voice = _decode_voices(files, [voice for voice in voices if voice.begin < seconds], cancel)
        lost = {voice.index: channel for voice in voices if (channel := voice.lost()) is not None}
        if not lost:
            break
        # Rare: the standard mix of 5.1 and similar drops a channel, or channels cancel each other.
        channels |= lost
    _limit(mix)
    tracks = [np.zeros(0 if most else round(seconds * VOICE_RATE), np.float32) for _ in files]
    for voice in voices:
        samples, warnings = voice.finish()
        warnings_by_voice += [(voice.index, text) for text in warnings]
        part = tracks[voice.index][round(voice.begin * VOICE_RATE) :]
        part[: len(samples)] = samples[: len(part)]
    warnings_by_voice.sort(key=lambda entry: entry[0])
    return Sounds(tuple(tracks), mix, tuple(f"speakers[{index}]: {text}" for index, text in warnings_by_voice))


def decode(
    path: Path, rate: int, layout: Layout, *, cut: Cut | None = None, field: str = "request.speakers"
) -> Samples:
    """Decode to float32 at `rate` Hz: (samples,) for "mono" (the mean of the channels), (samples, 2) for "stereo".

    `cut` is the part of the file to decode, by default all. Raises RequestError about `field`.
    """
    cut = cut or inspect(path, field=field).cut
    lane = _Resampler(rate, np.zeros((round(cut.seconds * rate) + 1, 1 if layout == "mono" else 2), np.float32))
    until = cut.start + cut.seconds
    for piece in pieces(path, cut.links, start=cut.start, until=until, damage=Damage(), field=field):
        time, block = within(piece, channel_of(piece, cut.channel), cut.start, cut.seconds)
        lane.feed(time, piece.rate, _to_mono(block) if layout == "mono" else _to_stereo(block), apart=piece.apart)
    samples = lane.finish()
    return samples[:, 0] if layout == "mono" else samples


def mix_in(
    track: Samples,
    path: Path,
    cut: Cut,
    *,
    begins: float,
    gain: float,
    field: str,
    cancel: CancelToken | None = None,
) -> list[str]:
    """Add the sound of a file to a sound track, float32 stereo 48 kHz (samples, 2), in place; return warnings.

    The sound's second 0 is at second `begins` of the track, and is multiplied by `gain`. Decoded block by block. A sum
    that would clip is scaled down as a whole. Raises RequestError about `field`, and Cancelled.
    """
    seconds, damage = len(track) / SOUND_RATE, Damage()
    start, at = max(0.0, -begins), max(0.0, begins)
    length = min(cut.seconds - start, seconds - at)
    if length <= 0:
        return []
    lane = _Resampler(SOUND_RATE, track[round(at * SOUND_RATE) :])
    for piece in pieces(path, cut.links, start=start, until=start + length, damage=damage, field=field, cancel=cancel):
        time, block = within(piece, channel_of(piece, cut.channel), start, length)
        lane.feed(time, piece.rate, _to_stereo(block) * np.float32(gain), apart=piece.apart)
    lane.finish()
    _limit(track)
    return damage.warnings()


# --- one voice of a video ---------------------------------------------------------------------------------------------


class _Voice:
    """Collects the samples of one speaker from the pieces of a file."""

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
        needed = min(cut.seconds, max(seconds - begin, LOUDNESS_SECONDS))
        #: Seconds of the voice that are decoded, and those of them that are in the video.
        self.decode_seconds = needed if most is None else min(needed, most)
        self.video_seconds = min(self.decode_seconds, seconds - begin)
        self._complete = self.decode_seconds == needed
        # Mean of the channels and half their difference: left and right are the sum and difference of these two.
        self._mean = _Resampler(VOICE_RATE, np.zeros((round(self.decode_seconds * VOICE_RATE), 1), np.float32))
        self._half: _Resampler | None = None
        self._track = _Resampler(SOUND_RATE, mix[round(begin * SOUND_RATE) :])
        # Energy of each channel if there are more than two, and of both channels of their mix.
        self._raw = np.zeros(0)
        self._mixed = np.zeros(2)

    def feed(self, piece: Piece) -> None:
        """Add the part of a piece that belongs to this voice."""
        time, block = within(piece, channel_of(piece, self.channel), self.cut.start, self.decode_seconds)
        if not len(block):
            return
        if self.channel is None and piece.raw.shape[1] > 2:
            self._compare(within(piece, piece.raw, self.cut.start, self.decode_seconds)[1], block, piece.rate)
        self._mean.feed(time, piece.rate, _to_mono(block), apart=piece.apart)
        if block.shape[1] == 2:
            if self._half is None:
                self._half = _Resampler(VOICE_RATE, np.zeros_like(self._mean.into))
                # It begins where the first piece with two channels begins.
                self._half.move(time)
            self._half.feed(time, piece.rate, np.float32(0.5) * (block[:, :1] - block[:, 1:]), apart=piece.apart)
        self._track.feed(time, piece.rate, _to_stereo(block), apart=piece.apart)

    def lost(self) -> int | None:
        """Return the number (from 1) of the loudest channel if the mix of more than two channels lost it, else None."""
        if not len(self._raw) or self._mixed.max() >= _LOST * self._raw.max():
            return None
        return int(self._raw.argmax()) + 1

    def finish(self) -> tuple[Samples, list[str]]:
        """Return the voice for the network, float32 mono at 16 kHz, and warnings."""
        warnings = []
        if self.channel != self.cut.channel:
            warnings.append(f"only channel {self.channel} is used: the mix of all channels almost removes it")
        self._track.finish()
        voice = self._mean.finish()[:, 0]
        if self._half is not None:
            half = self._half.finish()[: len(voice), 0]
            if _cancels(voice[: len(half)], half):
                voice = half
                warnings.append(
                    "left and right cancel each other (opposite phase), so their difference is used instead"
                )
        if self.video_seconds <= 0:
            return voice, [*warnings, f"the voice begins at {self.begin:.2f} s, when the video is over"]
        loud = integrated_loudness(voice, VOICE_RATE)
        voice = set_loudness(voice, loud)
        if not self._complete:
            # A plan decodes less than the video needs, so the checks below do not apply.
            return voice, warnings
        if not voice.any():
            warnings.append("the voice is silent, so this person will not speak")
        elif not math.isfinite(loud):
            warnings.append(f"the voice is below {_GATED} LUFS, too quiet, so this person will not speak")
        elif np.abs(voice[: max(1, round(self.video_seconds * VOICE_RATE))]).max() < _AUDIBLE:
            warnings.append(f"the voice is silent in the {self.video_seconds:.2f} s of it that are in the video")
        return voice, warnings

    def _compare(self, raw: Samples, mixed: Samples, rate: int) -> None:
        energy = np.square(raw, dtype=np.float64).sum(axis=0) / rate
        if len(self._raw) != len(energy):
            self._raw, self._mixed = np.zeros(len(energy)), np.zeros(2)
        self._raw += energy
        self._mixed += np.square(mixed, dtype=np.float64).sum(axis=0) / rate


def _decode_voices(
    files: Sequence[Path | None], voices: Sequence[_Voice], cancel: CancelToken | None
) -> list[tuple[int, str]]:
    """Decode each file once and feed its `voices`; return (index of the speaker, warning)."""
    warnings = []
    groups: dict[object, list[_Voice]] = {}
    for voice in voices:
        groups.setdefault((files[voice.index], voice.cut.links), []).append(voice)
    for group in groups.values():
        path = files[group[0].index]
        assert path is not None, "a voice with a cut has a file"
        damage = Damage()
        for piece in pieces(
            path,
            group[0].cut.links,
            start=min(voice.cut.start for voice in group),
            until=max(voice.cut.start + voice.decode_seconds for voice in group),
            damage=damage,
            field=f"request.speakers[{group[0].index}].audio",
            cancel=cancel,
        ):
            for voice in group:
                voice.feed(piece)
        warnings += [(voice.index, text) for voice in group for text in damage.warnings()]
    return warnings


def _cancels(mean: Samples, half: Samples) -> bool:
    """Return whether the mean of two channels has far less energy than the louder channel."""
    # Left is mean + half, right is mean - half.
    of_mean, of_half, both = _product(mean, mean), _product(half, half), _product(mean, half)
    return of_mean < _FAR_LESS * (of_mean + of_half + 2 * abs(both))


def _product(one: Samples, other: Samples) -> float:
    return math.fsum(float(np.dot(one[i : i + _BLOCK], other[i : i + _BLOCK])) for i in range(0, len(one), _BLOCK))


def _limit(mix: Samples) -> None:
    peak = max((float(np.abs(mix[i : i + _BLOCK]).max()) for i in range(0, len(mix), _BLOCK)), default=0.0)
    if peak > 1:
        mix /= np.float32(peak)


# --- samples at their position ---------------------------------------------------------------------------------------


class _Resampler:
    """Resamples blocks to one rate and adds each to an array (samples, channels) at its time."""

    def __init__(self, rate: int, into: Samples) -> None:
        self.into = into
        self._rate = rate
        self._at = self._input_rate = 0
        self._resampler: soxr.ResampleStream | None = None

    def feed(self, time: float, rate: int, block: Samples, *, apart: bool) -> None:
        """Add (samples, channels) at `rate` Hz that begin at `time`; `apart`: there is a gap before them."""
        if self._at >= len(self.into) or not len(block):
            return
        if apart or rate != self._input_rate:
            self.finish()
            self.move(time)
            self._input_rate = rate
            if rate != self._rate:
                channels = block.shape[1]
                self._resampler = soxr.ResampleStream(rate, self._rate, channels, dtype="float32", quality="HQ")
        self._put(block if self._resampler is None else self._resampler.resample_chunk(block))

    def move(self, time: float) -> None:
        """Continue at `time`, unless that is earlier than the current position."""
        self._at = max(self._at, round(time * self._rate))

    def finish(self) -> Samples:
        """Add the resampler's remaining samples, and return the array up to the last sample."""
        resampler, self._resampler, self._input_rate = self._resampler, None, 0
        if resampler is not None:
            self._put(resampler.resample_chunk(np.zeros((0, self.into.shape[1]), np.float32), last=True))
        return self.into[: self._at]

    def _put(self, block: Samples) -> None:
        part = self.into[self._at : self._at + len(block)]
        part += block[: len(part)]
        self._at += len(block)


def within(piece: Piece, block: Samples, start: float, seconds: float) -> tuple[float, Samples]:
    """Return the samples of a piece within `seconds` after `start`, and their begin relative to `start`."""
    first = max(0, round((start - piece.time) * piece.rate))
    last = max(0, round((start + seconds - piece.time) * piece.rate))
    return piece.time + first / piece.rate - start, block[first:last]


def channel_of(piece: Piece, channel: int | None) -> Samples:
    """Return the samples of a channel, by its number from 1; None: all channels, mixed to at most two."""
    if channel is None:
        return piece.mixed
    # This part of the file may have fewer channels.
    number = min(channel, piece.raw.shape[1]) - 1
    return piece.raw[:, number : number + 1]


def _to_mono(block: Samples) -> Samples:
    return np.ascontiguousarray(block.mean(axis=1, dtype=np.float32, keepdims=True))


def _to_stereo(block: Samples) -> Samples:
    return np.ascontiguousarray(np.broadcast_to(block, (len(block), 2)))
