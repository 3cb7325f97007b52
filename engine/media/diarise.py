"""Sections of speech in a recording, and whose they are: the parts of `diariser=resemblyzer`."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.cancel import check
from engine.data import Turn
from engine.data.cancel import CancelToken
from engine.data.dialogue import Samples

RATE = 16_000
#: Samples of one step of Silero VAD at 16 kHz, and those before it that it sees as well.
_STEP, _CONTEXT = 512, 64
#: Seconds of the sections of speech whose voices are compared, and from one section to the next.
_SECTION, _HOP = 1.2, 0.1
#: Shortest pause and shortest speech in seconds.
_PAUSE, _SPEECH = 0.2, 0.15

Floats = npt.NDArray[np.float32]


def speech_sections(mono: Samples, threshold: float, cancel: CancelToken | None) -> list[tuple[float, float]]:
    """Return (begin, end) in seconds of each section with speech in mono samples at 16 kHz.

    Runs the model of the package `silero-vad` with ONNX Runtime. The package itself is not imported, because it sets
    torch's number of threads for the whole process.
    """
    import onnxruntime

    package = find_spec("silero_vad")
    assert package is not None
    assert package.origin is not None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    model = Path(package.origin).parent / "data" / "silero_vad.onnx"
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    state = np.zeros((2, 1, 128), np.float32)
    padded = np.concatenate([np.zeros(_CONTEXT, np.float32), mono, np.zeros(_STEP, np.float32)])
    spoken: list[bool] = []
    for begin in range(0, len(mono), _STEP):
        check(cancel, "read")
        block = padded[None, begin : begin + _CONTEXT + _STEP]
        chance, state = session.run(None, {"input": block, "state": state, "sr": np.array(RATE, np.int64)})
        # Once speech has begun, a lower probability is enough to continue it.
        spoken.append(float(chance[0, 0]) >= (threshold - 0.15 if spoken and spoken[-1] else threshold))
    sections: list[tuple[float, float]] = []
    for begin, end in _runs(np.array(spoken)):
        first, last = begin * _STEP / RATE, min(end * _STEP, len(mono)) / RATE
        if sections and first - sections[-1][1] < _PAUSE:
            sections[-1] = sections[-1][0], last
        else:
            sections.append((first, last))
    return [(begin, end) for begin, end in sections if end - begin >= _SPEECH]


def _runs(flags: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Return (first, last + 1) of each run of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(np.int8), [0]])))
    return [(int(first), int(last)) for first, last in edges.reshape(-1, 2)]


def embed(
    mono: Samples, speech: Sequence[tuple[float, float]], cancel: CancelToken | None
) -> tuple[npt.NDArray[np.float64], Floats]:
    """Return the middle of each compared section in seconds, and its voice's embedding."""
    import torch

    with warnings.catch_warnings():
        # It imports a name of SciPy that is deprecated.
        warnings.simplefilter("ignore")
        from resemblyzer import VoiceEncoder, wav_to_mel_spectrogram

    encoder: Any = VoiceEncoder("cpu", verbose=False)
    centers: list[float] = []
    embedded: list[Floats] = []
    with torch.inference_mode():
        for begin, end in speech:
            check(cancel, "read")
            mel = wav_to_mel_spectrogram(mono[round(begin * RATE) : round(end * RATE)])
            size = min(len(mel), round(_SECTION * 100))
            firsts = [*range(0, max(1, len(mel) - size + 1), round(_HOP * 100))]
            batch = torch.from_numpy(np.stack([mel[first : first + size] for first in firsts]))
            embedded.append(np.asarray(encoder(batch)))
            centers += [begin + (first + size / 2) / 100 for first in firsts]
    return np.array(centers), np.concatenate(embedded)


def similarities(embedded: Floats, people: int) -> Floats:
    """Return the similarity of each section to each of at most `people` voices, (sections, voices)."""
    from scipy.cluster.hierarchy import fcluster, linkage

    if len(embedded) < 2:
        return np.ones((len(embedded), 1), np.float32)
    labels = fcluster(linkage(embedded, "ward"), people, "maxclust")
    for _ in range(10):
        centers = np.stack([embedded[labels == label].mean(axis=0) for label in np.unique(labels)])
        centers /= np.linalg.norm(centers, axis=1, keepdims=True)
        similar: Floats = embedded @ centers.T
        if np.array_equal(closest := similar.argmax(axis=1), labels):
            break
        labels = closest
    return similar


def turns(
    speech: Sequence[tuple[float, float]], centers: npt.NDArray[np.float64], similar: Floats, margin: float
) -> list[Turn]:
    """Return the turns: each 10 ms of speech belongs to the voice that the sections around it resemble most."""
    turns = []
    for begin, end in speech:
        times = np.arange(begin, end, 0.01) + 0.005
        inside = (centers >= begin) & (centers <= end)
        near = np.stack([np.interp(times, centers[inside], values) for values in similar[inside].T])
        best = near.argmax(axis=0)
        for person in range(len(near)):
            others = np.delete(near, person, axis=0).max(axis=0, initial=-1.0)
            own = best == person
            # A change of speakers makes sections that resemble both, but none longer than a section.
            unclear = (np.abs(near[person] - others) < margin) & (
                near[person] >= np.sort(near, axis=0)[-2:].min(axis=0)
            )
            for first, last in _runs(unclear):
                if (last - first) / 100 > _SECTION / 2:
                    own[first:last] = True
            turns += [
                Turn(person, begin + first / 100, min(end, begin + last / 100))
                for first, last in _runs(own)
                if (last - first) / 100 >= _SPEECH
            ]
    return turns
