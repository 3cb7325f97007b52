"""Whether the guidance passes of an evaluation run as one forward of a batch."""

from __future__ import annotations

from collections.abc import Callable

from engine.family import FamilyModel
from engine.machine.profiles import STREAMED
from engine.planning.memory import CONTEXT


def is_batched(choice: bool | None, model: FamilyModel, passes: int, temporary: Callable[[], int]) -> bool:
    """Return whether `passes` passes are batched: as `choice` says, or for None if blocks are streamed to a CUDA
    device, which is then done once for all passes, and the device has the memory.

    `temporary` returns the temporary bytes of such a forward. Call it while the transformer is in use. It counts the
    device's whole memory and this process's own tensors, not those of other processes: the same job must not give other
    bytes because a neighbour uses the device.
    """
    if passes < 2 or choice is not None:
        return bool(choice) and passes > 1
    if model.device != "cuda" or model.memory not in STREAMED:
        return False
    import torch

    total = int(torch.cuda.get_device_properties(0).total_memory)
    return temporary() <= total - CONTEXT - torch.cuda.memory_allocated()
