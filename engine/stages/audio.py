"""Voice files -> what the network hears and what the viewer hears."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import av
import numpy as np
import numpy.typing as npt
import soxr

from engine.data import AudioType
from engine.errors import RequestError

#: Hz of what the network hears (mono) and of the sound track (stereo).
VOICE_RATE, SOUND_RATE = 16_000, 48_000
#: Integrated loudness of a voice as the network hears it.
LOUDNESS = -23.0

Samples = npt.NDArray[np.float32]
Layout = Literal["mono", "stereo"]

_HINT = "give a WAV, MP3, FLAC, M4A, Ogg or video file with a voice in it"
#: Samples in one step where an array is walked without a copy of all of it.
_BLOCK = 1 << 18
#: ITU-R BS.1770 measures blocks of 0.4 s.
_GATE = 0.4


def measure_seconds(path: Path, *, field: str, max_seconds: float | None = None) -> float:
    """Return the seconds of the first audio track of any file PyAV reads, counted in decoded samples.

    Headers lie about lengths or say none. Raises RequestError about `field` for an unreadable file, one without
    audio track or samples, damaged data, samples that are not finite, and more than `max_seconds`.
    """
    seconds = 0.0
    for rate, block in _blocks(path, field):
        seconds += len(block) / rate
        if max_seconds is not None and seconds > max_seconds:
            raise RequestError(
                f"the voice is longer than {max_seconds:g} seconds",
                field=field,
                hint="cut it into several requests",
                code="audio_too_long",
            )
    return seconds


def decode(path: Path, rate: int, layout: Layout, *, field: str = "request.speakers") -> Samples:
    """Decode to float32 at `rate` Hz: (samples,) for "mono" (the mean of the channels), (samples, 2) for "stereo".

    Raises RequestError as `measure_seconds` does.
    """
    return np.concatenate(list(_resampled(path, rate, layout, field)))


def normalize_loudness(voice: Samples, rate: int = VOICE_RATE, target: float = LOUDNESS) -> Samples:
    """Scale mono samples to `target` LUFS (ITU-R BS.1770, by pyloudnorm); silence (beyond -100 LUFS) stays as it is.

    A voice shorter than the meter's 0.4 s block is measured as if it were repeated. Source: MultiTalk,
    generate_multitalk.py, loudness_norm.
    """
    measured = loudness(voice, rate)
    if not math.isfinite(measured) or abs(measured) > 100:
        return voice
    return voice * np.float32(10 ** ((target - measured) / 20))


def loudness(voice: Samples, rate: int = VOICE_RATE) -> float:
    """Return the integrated loudness of mono samples in LUFS; -inf for silence."""
    if not voice.any():
        return -math.inf
    import pyloudnorm  # brings scipy.signal, a second of start-up

    block = math.ceil(_GATE * rate)
    if len(voice) < block:
        voice = np.tile(voice, math.ceil(block / len(voice)))
    return float(pyloudnorm.Meter(rate).integrated_loudness(voice))


def voice_spans(seconds: Sequence[float], audio_type: AudioType) -> tuple[tuple[float, float], ...]:
    """Return (begin, end) in seconds of each voice: "para" all from 0, "add" one after the other."""
    begins = [0.0] * len(seconds) if audio_type == "para" else [math.fsum(seconds[:i]) for i in range(len(seconds))]
    return tuple((begin, begin + length) for begin, length in zip(begins, seconds, strict=True))


def length_seconds(seconds: Sequence[float], audio_type: AudioType) -> float:
    """Return the seconds at which the last voice ends."""
    return max((end for _, end in voice_spans(seconds, audio_type)), default=0.0)


def read_voices(
    files: Sequence[Path | None], spans: Sequence[tuple[float, float]], seconds: float
) -> tuple[Samples, ...]:
    """Decode the voices for the network: float32 mono 16 kHz, each round(`seconds` * 16000) samples long.

    Each is brought to -23 LUFS as a whole, laid at the beginning of its span, followed by silence or cut at the end.
    A speaker without a file is all zeros.
    """
    voices = []
    for index, (file, (begin, _)) in enumerate(zip(files, spans, strict=True)):
        track = np.zeros(round(seconds * VOICE_RATE), np.float32)
        if file is not None:
            voice = normalize_loudness(decode(file, VOICE_RATE, "mono", field=f"request.speakers[{index}].audio"))
            start = min(round(begin * VOICE_RATE), len(track))
            voice = voice[: len(track) - start]
            track[start : start + len(voice)] = voice
        voices.append(track)
    return tuple(voices)


def read_sound(files: Sequence[Path | None], spans: Sequence[tuple[float, float]], seconds: float) -> Samples:
    """Mix the original voices to the sound track: float32 stereo 48 kHz, (round(`seconds` * 48000), 2).

    Their loudness is kept; only a sum that would clip is scaled down as a whole. Voices are added block by block as
    they are decoded, so that no second copy of a track is ever held.
    """
    mix = np.zeros((round(seconds * SOUND_RATE), 2), np.float32)
    for index, (file, (begin, _)) in enumerate(zip(files, spans, strict=True)):
        position = round(begin * SOUND_RATE)
        if file is None or position >= len(mix):
            continue
        for block in _resampled(file, SOUND_RATE, "stereo", f"request.speakers[{index}].audio"):
            part = mix[position : position + len(block)]
            part += block[: len(part)]
            position += len(block)
            if position >= len(mix):
                break
    peak = max((float(np.abs(mix[i : i + _BLOCK]).max()) for i in range(0, len(mix), _BLOCK)), default=0.0)
    if peak > 1:
        mix /= np.float32(peak)
    return mix


# --- decoding ---------------------------------------------------------------------------------------------------------


def _resampled(path: Path, rate: int, layout: Layout, field: str) -> Iterator[Samples]:
    resampler: soxr.ResampleStream | None = None
    mix = _to_mono if layout == "mono" else _to_stereo
    for given, block in _blocks(path, field):
        if given == rate:
            yield mix(block)
            continue
        if resampler is None:
            resampler = soxr.ResampleStream(given, rate, 1 if layout == "mono" else 2, dtype="float32", quality="HQ")
        yield resampler.resample_chunk(mix(block))
    if resampler is not None:
        yield resampler.resample_chunk(mix(np.zeros((0, 1), np.float32)), last=True)


def _to_mono(block: Samples) -> Samples:
    return np.ascontiguousarray(block.mean(axis=1, dtype=np.float32))


def _to_stereo(block: Samples) -> Samples:
    return np.ascontiguousarray(np.broadcast_to(block, (len(block), 2)))


def _blocks(path: Path, field: str) -> Iterator[tuple[int, Samples]]:
    """Decode the first audio track: (Hz, float32 (samples, channels)), channels 1 or 2. Raises RequestError."""
    count = 0
    with _opened(path, field) as container:
        if not container.streams.audio:
            raise RequestError("the file has no audio track", field=field, hint=_HINT, code="audio_empty")
        stream = container.streams.audio[0]
        # A mono file stays mono: libswresample would lower it by 3 dB on its way to stereo. More than two channels
        # are mixed by its standard matrix.
        channels = min(stream.channels, 2)
        resampler = av.AudioResampler(format="flt", layout="mono" if channels == 1 else "stereo", rate=stream.rate)
        for frame in _with_end(container.decode(stream)):
            for part in resampler.resample(frame):
                block: Samples = part.to_ndarray().reshape(-1, channels).astype(np.float32, copy=False)
                if not np.isfinite(block).all():
                    what = "the audio holds samples that are not finite"
                    raise RequestError(what, field=field, hint=_HINT, code="audio_unreadable")
                count += len(block)
                yield stream.rate, block
    if count == 0:
        raise RequestError("the audio track has no samples", field=field, hint=_HINT, code="audio_empty")


def _with_end(frames: Iterator[av.AudioFrame]) -> Iterator[av.AudioFrame | None]:
    # None asks the resampler for what it still holds.
    yield from frames
    yield None


@contextmanager
def _opened(path: Path, field: str) -> Iterator[av.container.InputContainer]:
    # FFmpeg is handed the open file and no protocol: it would take "%03d" in a name for a pattern, and a playlist
    # could make it open other files or addresses.
    try:
        if path.stat().st_size == 0:
            raise RequestError("the audio file is empty (0 bytes)", field=field, hint=_HINT, code="audio_empty")
        with path.open("rb") as file, av.open(file, "r", options={"protocol_whitelist": "none"}) as container:
            yield container
    except (av.FFmpegError, OSError, ValueError, EOFError) as error:
        reason = getattr(error, "strerror", None) or error
        what = f"the audio cannot be decoded: {reason}"
        raise RequestError(what, field=field, hint=_HINT, code="audio_unreadable") from error
