"""How much memory is free, and which memory profile fits."""

from __future__ import annotations

from collections.abc import Mapping

from engine.machine.host_memory import free_host_memory
from engine.text.amounts import gigabytes

#: By how much stays on the device, the most first; `docs/plan.md` says what each does.
PROFILES = ("none", "text-offload", "model-offload", "group-offload", "lowest")
#: Those that copy the transformer's blocks to the device in every forward.
STREAMED = ("group-offload", "lowest")
#: Share of free memory that a profile may use: allocators leave gaps, and other processes need some, too.
USABLE = 0.9
#: Memory reserved for activations, as a multiple of the tokens: 13 GB were published for 81 frames of 448 x 896 with
#: all weights off the device, which is 39 times the 0.34 GB of their tokens in bfloat16.
_ALLOWED = 40
#: Share of that memory that stays free of resident blocks: what forwards need by calculation (13 times their tokens)
#: and the states of a first-block cache for two branches (12 times).
_BESIDE = 0.65
#: Share of the transformer on the device with group offloading: two blocks of 40, and everything outside the blocks.
_GROUPS = 0.1


def choose_profile(
    sizes: Mapping[str, int], activations: int, *, device_free: int | None, host_free: int
) -> tuple[str, str]:
    """Return the fastest memory profile that fits and, in one line, why.

    `sizes` are the bytes of "transformer" and the other components in memory, `activations` the bytes that forwards
    need in addition, `device_free` and `host_free` free bytes; without `device_free` the host is the device. This is a
    rule of thumb: it uses only the bytes of weights and one allowance.
    """
    transformer, total = sizes["transformer"], sum(sizes.values())
    text = sizes.get("text_encoder", 0)
    others = max((size for name, size in sizes.items() if name != "transformer"), default=0)
    if device_free is None:
        needs = {"none": (0, total + activations), "lowest": (0, max(transformer, others) + activations)}
    else:
        apart = max(others, int(_GROUPS * transformer) + activations)
        needs = {
            "none": (total + activations, 0),
            "text-offload": (max(text, total - text + activations), total),
            "model-offload": (max(others, transformer + activations), total),
            "group-offload": (apart, total),
            "lowest": (apart, transformer),
        }
    reasons = []
    for name, (device, host) in needs.items():
        if device > USABLE * (device_free or 0):
            reasons.append(f"{name} needs {gigabytes(device)} on the device, {gigabytes(device_free or 0)} are free")
        elif host > USABLE * host_free:
            reasons.append(f"{name} needs {gigabytes(host)} of this machine's memory, {gigabytes(host_free)} are free")
        else:
            where = f"{gigabytes(host)} of {gigabytes(host_free)} free in this machine's memory"
            if device_free is not None:
                where = f"{gigabytes(device)} of {gigabytes(device_free)} free on the device and {where}"
            return name, "; ".join([f"{name} takes {where}", *reasons])
    return "lowest", "; ".join(["nothing fits, lowest needs least", *reasons])


def room_for_blocks(activations: int, device_free: int) -> int:
    """Return the bytes on the device for the weights of a transformer whose blocks are streamed."""
    return max(0, int(USABLE * device_free - _BESIDE * activations))


def resident_blocks(room: int, *, root: int, block: int, places: int, layers: int) -> int:
    """Return how many of `layers` blocks can stay in `room` bytes, with the root and `places` for streamed blocks."""
    if root + block * layers <= room:
        return layers
    return max(0, min(layers, (room - root) // block - places))


def allowance(tokens: int, channels: int, itemsize: int) -> int:
    """Return the bytes reserved for forwards over `tokens` of `channels` values of `itemsize` bytes."""
    return _ALLOWED * tokens * channels * itemsize


def free_on_device() -> int:
    """Return the free bytes of the current CUDA device."""
    import torch

    return int(torch.cuda.mem_get_info()[0])


def free_on_host() -> int:
    """Return the bytes of host memory that this process can still allocate, and 0 if the system does not say.

    With 0, memory=auto picks the profile that needs least.
    """
    return free_host_memory() or 0
