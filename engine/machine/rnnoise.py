"""RNNoise, by the library in the package `pyrnnoise`, whose weights are compiled into it."""

from __future__ import annotations

import ctypes
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soxr

from engine.data.cancel import CancelToken
from engine.errors import Cancelled

Samples = npt.NDArray[np.float32]

RATE, _OWN = 16_000, 48_000
#: Samples of a frame at 48 kHz, and by how many the output is late: two frames.
_FRAME, _LATE = 480, 960
#: Level in dB that stands for digital silence.
SILENT = -100.0


def denoise(voice: Samples, *, cancel: CancelToken | None = None) -> tuple[Samples, float]:
    """Return a voice, float32 mono at 16 kHz, without noise, and the level of the noise in its pauses.

    The level is in dB relative to the voice: of the samples where RNNoise finds the least speech (a fifth of the
    frames) to those where it finds the most (a half). Raises Cancelled.
    """
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
    return narrow, _level(np.square(frames[:-2]).mean(axis=1), chances[2:])


def _level(power: npt.NDArray[np.floating], chances: npt.NDArray[np.float64]) -> float:
    """Return the level of the frames with the least speech, relative to those with the most."""
    order = np.argsort(chances[: len(power)], kind="stable")
    least, most = order[: max(1, len(order) // 5)], order[len(order) // 2 :]
    quiet, loud = float(np.median(power[least])), float(power[most].mean())
    return SILENT if quiet <= loud * 1e-10 else 10 * float(np.log10(quiet / loud))


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
