"""RNNoise, by the library in the package `pyrnnoise`, whose weights are compiled into it."""

from __future__ import annotations

import ctypes
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import soxr

from engine.data.cancel import CancelToken
from engine.errors import Cancelled

Samples = npt.NDArray[np.float32]
#: Indices of frames.
Frames = npt.NDArray[np.intp]

RATE, _OWN = 16_000, 48_000
#: Samples of a frame at 48 kHz, and by how many the output is late: two frames.
_FRAME, _LATE = 480, 960
#: Level in dB that stands for digital silence.
SILENT = -100.0
#: Samples of a section whose flatness is measured; its bins of 23 Hz from 117 Hz on, in bands of 16.
_SECTION, _BINS, _BAND = 2048, slice(5, 165), 16


class Denoised(NamedTuple):
    """A voice without noise, and what its pauses sounded like."""

    #: float32 mono at 16 kHz, as long as the voice that was given.
    voice: Samples
    #: Level of the pauses in dB relative to the voice: of the fifth of the frames in which RNNoise finds the least
    #: speech, to the half in which it finds the most.
    level: float
    #: How even the spectrum of the pauses is, 0 to 1: noise of any colour has 0.55 and more, chords, a hum and other
    #: people 0.36 and less.
    flatness: float


def denoise(voice: Samples, *, cancel: CancelToken | None = None) -> Denoised:
    """Return a voice, float32 mono at 16 kHz, without noise, and what its pauses sound like. Raises Cancelled."""
    library = _library()
    wide = soxr.resample(voice, RATE, _OWN).astype(np.float32) * np.float32(32768)
    frames = np.zeros((-(-len(wide) // _FRAME) + 2, _FRAME), np.float32)
    frames.reshape(-1)[: len(wide)] = wide
    out, chances = np.empty_like(frames), np.empty(len(frames))
    state = ctypes.c_void_p(library.rnnoise_create(None))
    pointer = ctypes.POINTER(ctypes.c_float)
    try:
        for index, frame in enumerate(frames):
            if cancel is not None and index % 100 == 0 and cancel.is_set():
                raise Cancelled("read")
            target = out[index].ctypes.data_as(pointer)
            chances[index] = library.rnnoise_process_frame(state, target, frame.ctypes.data_as(pointer))
    finally:
        library.rnnoise_destroy(state)
    cleaned = out.reshape(-1)[_LATE : _LATE + len(wide)] / np.float32(32768)
    narrow = np.zeros_like(voice)
    part = soxr.resample(cleaned, _OWN, RATE).astype(np.float32)[: len(voice)]
    narrow[: len(part)] = part
    order = np.argsort(chances[2:], kind="stable")
    least, most = order[: max(1, len(order) // 5)], order[len(order) // 2 :]
    return Denoised(narrow, _level(np.square(frames[:-2]).mean(axis=1), least, most), _flatness(frames, least))


def _level(power: npt.NDArray[np.floating], least: Frames, most: Frames) -> float:
    """Return the level of the frames with the least speech, relative to those with the most."""
    quiet, loud = float(np.median(power[least])), float(power[most].mean())
    return SILENT if quiet <= loud * 1e-10 else 10 * float(np.log10(quiet / loud))


def _flatness(frames: Samples, least: Frames) -> float:
    """Return the ratio of the geometric to the arithmetic mean of the power spectrum, in bands, by their power.

    It is that of the flattest quarter of the sections around the frames with the least speech: the others may have
    speech at their edges.
    """
    padded = np.pad(frames.reshape(-1), _SECTION // 2)
    found = []
    for index in least:
        begin = int(index) * _FRAME + _FRAME // 2
        power = np.abs(np.fft.rfft(padded[begin : begin + _SECTION] * np.hanning(_SECTION))) ** 2
        bands = power[_BINS].reshape(-1, _BAND) + 1e-3
        flat = np.exp(np.log(bands).mean(axis=1)) / bands.mean(axis=1)
        found.append(float(np.average(flat, weights=bands.sum(axis=1))))
    return float(np.percentile(found, 75))


def _library() -> ctypes.CDLL:
    # Not the package itself: it imports matplotlib.
    package = find_spec("pyrnnoise")
    assert package is not None
    assert package.origin is not None
    name = {"darwin": "librnnoise.dylib"}.get(sys.platform, "librnnoise.so")
    library = ctypes.CDLL(str(Path(package.origin).parent / name))
    library.rnnoise_create.restype = ctypes.c_void_p
    library.rnnoise_create.argtypes = [ctypes.c_void_p]
    library.rnnoise_destroy.argtypes = [ctypes.c_void_p]
    library.rnnoise_process_frame.restype = ctypes.c_float
    library.rnnoise_process_frame.argtypes = [ctypes.c_void_p, *[ctypes.POINTER(ctypes.c_float)] * 2]
    return library
