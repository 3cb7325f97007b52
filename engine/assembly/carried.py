"""What a window hands to the next one, as arrays of a state on disk."""

from __future__ import annotations

from engine.assembly.judge_states import Form, form_of
from engine.family import Carried
from engine.files.states import State

#: Prefix of their names among the arrays of a state.
_PREFIX = "carried."


def arrays_of(carried: Carried) -> dict[str, Form]:
    """Return tensors, float32 on the CPU, as arrays of a state."""
    return {_PREFIX + name: form_of(tensor.numpy()) for name, tensor in carried.items()}


def carried_of(state: State) -> Carried:
    """Return what a state's next window gets. Imports torch."""
    import torch

    return {
        name.removeprefix(_PREFIX): torch.frombuffer(bytearray(array), dtype=torch.float32).reshape(
            state.forms[name][1]
        )
        for name, array in state.arrays.items()
        if name.startswith(_PREFIX)
    }
