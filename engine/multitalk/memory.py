"""What of the model is on the device, and when."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import nn

from engine.errors import ConfigError, UnknownComponent

NAMES = ("none", "model-offload", "group-offload")


class Placement(Protocol):
    """Brings components to the device when their turn comes."""

    def use(self, name: str) -> AbstractContextManager[None]:
        """Have component `name` on the device inside a `with`; only one at a time."""
        ...

    def close(self) -> None:
        """Take everything off the device."""
        ...


def place(name: str, parts: Mapping[str, nn.Module], *, device: str, blocks: int = 1) -> Placement:
    """Place `parts` by the memory mode `name`.

    "none": all on `device` from now on. "model-offload": one on `device` at a time, the others on the CPU.
    "group-offload": so too, but of "transformer" only `blocks` blocks at a time (diffusers' group offloading).
    Raises UnknownComponent and ConfigError.
    """
    if name == "none":
        return _Resident(parts, device)
    if name == "model-offload":
        return _OneAtATime(parts, device)
    if name == "group-offload":
        if blocks < 1:
            raise ConfigError(f"groups of {blocks} blocks", field="memory.blocks", hint="give 1 or more")
        _offload_groups(parts["transformer"], device, blocks)
        return _OneAtATime({part: module for part, module in parts.items() if part != "transformer"}, device)
    raise UnknownComponent("memory", name, NAMES)


class _Resident:
    def __init__(self, parts: Mapping[str, nn.Module], device: str) -> None:
        self._parts = dict(parts)
        for module in self._parts.values():
            module.to(device)

    def use(self, name: str) -> AbstractContextManager[None]:
        return nullcontext()

    def close(self) -> None:
        for module in self._parts.values():
            module.to("cpu")
        self._parts.clear()
        _free_cache()


class _OneAtATime:
    """Moves a component out only when another one is wanted, so that neighbouring uses of one move nothing.

    A name that is not among the parts takes care of itself, but needs the room.
    """

    def __init__(self, parts: Mapping[str, nn.Module], device: str) -> None:
        self._parts = dict(parts)
        self._device = device
        self._resident: str | None = None
        self._used: str | None = None
        for module in self._parts.values():
            module.to("cpu")

    @contextmanager
    def use(self, name: str) -> Iterator[None]:
        if self._used not in (None, name):
            raise RuntimeError(f"{name} is wanted on the device while {self._used} is in use")
        outer, self._used = self._used, name
        try:
            self._bring(name)
            yield
        finally:
            self._used = outer

    def _bring(self, name: str) -> None:
        if self._resident == name:
            return
        self._evict()
        module = self._parts.get(name)
        if module is None:
            return
        # Before the move: one that fails half-way leaves parts of the module on the device.
        self._resident = name
        try:
            module.to(self._device)
        except BaseException:
            self._evict()
            raise

    def _evict(self) -> None:
        if self._resident is not None:
            self._parts[self._resident].to("cpu")
            self._resident = None
            _free_cache()

    def close(self) -> None:
        self._evict()
        self._parts.clear()


def _offload_groups(transformer: Any, device: str, blocks: int) -> None:
    cuda = torch.device(device).type == "cuda"
    transformer.enable_group_offload(
        onload_device=torch.device(device),
        offload_device=torch.device("cpu"),
        offload_type="block_level",
        num_blocks_per_group=blocks,
        # The next group comes while the current one computes; pinning all of 14B at once would take 30 GB of memory.
        use_stream=cuda,
        low_cpu_mem_usage=cuda,
    )
    if cuda:
        trace_blocks(transformer, device)


@torch.no_grad()
def trace_blocks(transformer: Any, device: str) -> None:
    """Run one token through the network.

    diffusers learns from the first forward in which order to prefetch groups. Ours would be an embedding of
    conditions, which enters no block: nothing would ever be prefetched.
    """
    config = transformer.config
    transformer(
        hidden_states=torch.zeros(1, config.in_channels, *config.patch_size, device=device),
        timestep=torch.zeros(1, device=device),
        encoder_hidden_states=torch.zeros(1, 1, config.text_dim, device=device),
        encoder_hidden_states_image=torch.zeros(1, config.image_tokens, config.image_dim, device=device),
    )


def _free_cache() -> None:
    # Does nothing where CUDA was never used.
    torch.cuda.empty_cache()
