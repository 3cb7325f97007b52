"""What a judge has seen so far, as plain JSON and small arrays for the state of an unfinished video."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.assembly.retakes import Retakes
from engine.data import Attempt, WindowReport

#: An array as a state stores it: dtype, shape and bytes.
Form = tuple[str, tuple[int, ...], memoryview]
#: Arrays of a judge's state, by their names there.
_ARRAYS = ("colours", "last")


def form_of(array: npt.NDArray[Any]) -> Form:
    """Return an array as a state stores it."""
    array = np.ascontiguousarray(array)
    return str(array.dtype), array.shape, array.reshape(-1).view(np.uint8).data


def judge_state(retakes: Retakes) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """Return the state of a request's judge, and its reports so far: plain JSON, and arrays by name."""
    state, reports = retakes.state()
    arrays = {f"judge_{name}": np.asarray(state[name]) for name in _ARRAYS if name in state}
    plain = {key: value for key, value in state.items() if key not in _ARRAYS}
    return {"state": plain, "reports": [asdict(report) for report in reports]}, arrays


def restore_judge(
    retakes: Retakes,
    judge: Mapping[str, Any],
    arrays: Mapping[str, bytes],
    forms: Mapping[str, tuple[str, tuple[int, ...]]],
) -> None:
    """Let a request's judge go on from what `judge_state` returned."""
    state = dict(judge["state"])
    for name in _ARRAYS:
        if (key := f"judge_{name}") in arrays:
            dtype, shape = forms[key]
            state[name] = np.frombuffer(arrays[key], dtype).reshape(shape)
    retakes.restore(state, [_report(report) for report in judge["reports"]])


def _report(values: Mapping[str, Any]) -> WindowReport:
    attempts = tuple(Attempt(**{**one, "below": tuple(one["below"])}) for one in values["attempts"])
    return WindowReport(**{**values, "below": tuple(values["below"]), "attempts": attempts})
