"""Whether the guidance passes of an evaluation run as one forward of a batch."""

from __future__ import annotations

from typing import Any

from engine.data import Conditions
from engine.loading.model import Model
from engine.machine.profiles import STREAMED
from engine.planning.activations import forward_bytes
from engine.planning.memory import CONTEXT, FRAGMENTED


def is_batched(choice: bool | None, model: Model, conditions: Conditions, passes: int) -> bool:
    """Return whether `passes` passes are batched: as `choice` says, or for None if blocks are streamed to a CUDA
    device, which is then done once for all passes, and the device has the memory.

    Call it while the transformer is in use. It counts the device's whole memory and this process's own tensors, not
    those of other processes: the same job must not give other bytes because a neighbour uses the device.
    """
    if passes < 2 or choice is not None:
        return bool(choice) and passes > 1
    if model.device != "cuda" or model.memory not in STREAMED:
        return False
    import torch

    total = int(torch.cuda.get_device_properties(0).total_memory)
    return batch_bytes(model, conditions, passes) <= total - CONTEXT - torch.cuda.memory_allocated()


def batch_bytes(model: Model, conditions: Conditions, passes: int) -> int:
    """Return the bytes of temporary tensors of a forward of `passes` samples, with the allocator's loss."""
    config: Any = model.transformer.config
    branches = list(conditions.branches.values())
    speakers = max(1 if one.speakers is None else len(one.speakers.sums) - 1 for one in branches)
    _, frames, rows, columns = conditions.latents.shape
    value = max(one.context.element_size() for one in branches)
    one = forward_bytes(config, (frames, rows, columns), value=value, speakers=speakers, adapted=True)
    return int(one * passes * (1 + FRAGMENTED))
