"""Voices before their encoders: preparation of 1.0, tracks of several speakers, and bystanders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engine.components import CancelToken
from engine.errors import RequestError
from engine.network.audio import SAMPLE_RATE, audio_frames
from plugins.families.longcat.versions import Version

Samples = npt.NDArray[np.float32]

#: Level of the noise that 1.0 adds to a voice, in decibels of full scale.
NOISE_DB = -45.0
#: Low-pass of 1.0: order, and its cutoff in Hz.
LOW_PASS = (3, 3000.0)


def prepare_voice(voice: Samples, generator: torch.Generator) -> Samples:
    """Return a voice, mono 16 kHz at -23 LUFS, as wav2vec2 of 1.0 hears it: with faint noise, then low-passed.

    The noise is drawn from `generator`, on the CPU: the public code draws it from a generator that nobody seeded, so
    that the same voice gives another video each time.
    """
    noise = torch.randn(len(voice), generator=generator, device="cpu", dtype=torch.float32).numpy()
    return low_pass(add_noise(voice, noise))


def add_noise(voice: Samples, noise: Samples) -> Samples:
    """Return a voice plus standard normal `noise` at -45 dB."""
    return (voice + noise * np.float32(10 ** (NOISE_DB / 20))).astype(np.float32)


def low_pass(voice: Samples) -> Samples:
    """Return a voice after a causal Butterworth filter of order 3 at 3 kHz that starts at rest."""
    from scipy.signal import butter, lfilter

    order, cutoff = LOW_PASS
    numerator, denominator = butter(order, cutoff / (SAMPLE_RATE / 2), btype="low")
    filtered: Samples = lfilter(numerator, denominator, voice).astype(np.float32)
    return filtered


def encode_tracks(
    version: Version,
    encoder: Any,
    tracks: Sequence[Samples],
    generator: torch.Generator,
    *,
    cancel: CancelToken | None = None,
) -> Tensor:
    """Encode tracks of equal length, mono 16 kHz at -23 LUFS: (n, frames, blocks, channels), float32 on the CPU.

    `encoder`: `WhisperFeatures`, or for 1.0 the engine's `AudioEncoder`. `generator` draws the noise of 1.0, track by
    track; silent tracks get it, too. Raises Cancelled once `cancel` is set.
    """
    features = []
    for track in tracks:
        heard = prepare_voice(track, generator) if version.prepares_voices else track
        frames = audio_frames(len(track), version.feature_rate)
        features.append(encoder.encode(torch.tensor(heard), frames, cancel=cancel).cpu())
    return torch.stack(features)


def join_tracks(
    voices: Sequence[Samples | None], order: Literal["para", "add"], *, bystanders: bool = False
) -> tuple[Samples, ...]:
    """Return the tracks of a video, of equal length: one for each speaker, and a silent one for bystanders.

    None is a silent speaker. "para": all speak from the beginning, and shorter voices end with silence (the public code
    refuses them). "add": one after the other, silent while the others speak. Raises RequestError if nobody speaks.
    """
    lengths = [0 if voice is None else len(voice) for voice in voices]
    if not any(lengths):
        raise RequestError("no speaker has a voice", field="speakers", hint="give at least one audio file")
    total = max(lengths) if order == "para" else sum(lengths)
    tracks = [np.zeros(total, np.float32) for _ in voices]
    clock = 0
    for track, voice, length in zip(tracks, voices, lengths, strict=True):
        begin = clock if order == "add" else 0
        if voice is not None:
            track[begin : begin + length] = voice
        clock += length
    if bystanders:
        tracks.append(np.zeros(total, np.float32))
    return tuple(tracks)


def silence(windows: Tensor) -> Tensor:
    """Return the null audio of guidance: zeros in place of the features of all tracks.

    MultiTalk's null audio has one track; here masks and label ranges stay on.
    """
    return torch.zeros_like(windows)
