"""Copy a network's blocks to the device one after the other, the next ones while one computes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from diffusers.hooks import HookRegistry, ModelHook
from torch import Tensor, nn

from engine.loading.mover import Mover
from engine.loading.pinned_memory import Arena, Slice, copy_to_arena, rounded, shaped
from engine.loading.slots import Weight, layout_of, of_parts, parts_of, weights_of

_HOOK = "multitalk_streamer"


@dataclass
class DeviceBuffer:
    """Device memory that holds one block at a time."""

    memory: Tensor
    #: Index of the block that is here or being copied.
    holds: int | None = None
    #: Parameters as views of the memory, by the layout of a block: blocks with the same layout share them.
    parameters: dict[tuple[str, ...], list[Tensor]] = field(default_factory=dict)
    #: Events of a lane: the end of the copy to this buffer, and of the computation with it.
    filled: Any = None
    free: Any = None


class CopyLane(Protocol):
    """Copies from host memory to buffers on the device."""

    def fill(self, place: DeviceBuffer, runs: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Copy pairs (to, from) into a buffer, after all computation with its old contents."""
        ...

    def wait(self, place: DeviceBuffer) -> None:
        """Make later computation wait until the buffer is filled."""
        ...

    def leave(self, place: DeviceBuffer) -> None:
        """Mark that all computation with the buffer's contents has been queued."""
        ...


class InlineLane:
    """Copies in order with everything else: on a CPU, or on a GPU without a separate stream."""

    def fill(self, place: DeviceBuffer, runs: Sequence[tuple[Tensor, Tensor]]) -> None:
        for to, source in runs:
            to.copy_(source, non_blocking=True)

    def wait(self, place: DeviceBuffer) -> None:
        pass

    def leave(self, place: DeviceBuffer) -> None:
        pass


class StreamLane:
    """Copies on a separate CUDA stream. Streams wait for each other by events; the host does not wait."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self.stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]

    def fill(self, place: DeviceBuffer, runs: Sequence[tuple[Tensor, Tensor]]) -> None:
        if place.free is None:
            # Fresh memory may belong to a freed tensor whose last use is still queued.
            place.free = torch.cuda.Event()  # type: ignore[no-untyped-call]
            place.filled = torch.cuda.Event()  # type: ignore[no-untyped-call]
            place.free.record(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            self.stream.wait_event(place.free)
            for to, source in runs:
                to.copy_(source, non_blocking=True)
            place.filled.record(self.stream)

    def wait(self, place: DeviceBuffer) -> None:
        if place.filled is not None:
            torch.cuda.current_stream(self.device).wait_event(place.filled)

    def leave(self, place: DeviceBuffer) -> None:
        place.free.record(torch.cuda.current_stream(self.device))


@dataclass
class _Block:
    """One block: its weights on the host, and where each part of them goes in a buffer."""

    module: nn.Module
    weights: list[Weight]
    #: Offsets in a buffer of the parts of each weight, bytes.
    begins: list[list[int]]
    size: int
    layout: tuple[str, ...]
    #: Offset in a buffer, and the bytes that are copied there in one operation.
    runs: list[tuple[int, Tensor]]

    def is_current(self) -> bool:
        """Return whether its weights are still those that are in the arena."""
        now = weights_of(self.module)
        return len(now) == len(self.weights) and all(
            one.tensor is other.tensor for one, other in zip(now, self.weights, strict=True)
        )


class Streamer:
    """Keeps a network's blocks in host memory, and each on the device while it computes.

    A block's weights are copied to a buffer when its forward begins, unless they are there already, and the copies of
    the next blocks are started. If blocks do not run in order, for example because a step cache skips some, a block
    that was not foreseen is copied when its forward begins. Nothing is copied back. Weights outside the blocks are on
    the device between `onload` and `offload`.
    """

    def __init__(
        self,
        network: Any,
        device: str,
        *,
        arena: Arena,
        ahead: int = 1,
        resident: int = 0,
        lane: CopyLane | None = None,
    ) -> None:
        """Copy the weights to `arena` and hook the blocks.

        `ahead` blocks are copied while one computes; `resident` blocks stay, once copied, until `offload`.
        """
        self.network, self.device, self.arena = network, device, arena
        self.lane: CopyLane = lane or InlineLane()
        blocks: list[nn.Module] = list(network.blocks)
        self.root = Mover(network, device, excluding=blocks)
        # First, because the largest tensor is among them.
        copy_to_arena(weights_of(network, excluding=blocks), arena)
        self.blocks = [_move_block(block, arena) for block in blocks]
        #: Spread evenly, so that other blocks can be copied while these compute.
        self.stays = {
            index
            for index in range(len(blocks))
            if (index + 1) * resident // len(blocks) > index * resident // len(blocks)
        }
        self.streamed = [index for index in range(len(blocks)) if index not in self.stays]
        self._most = min(ahead + 1, len(self.streamed))
        self._own: dict[int, DeviceBuffer] = {}
        self._shared: list[DeviceBuffer] = []
        for index, block in enumerate(blocks):
            registry = HookRegistry.check_if_exists_or_initialize(block)
            registry.register_hook(_StreamerHook(self, index), _HOOK)

    def onload(self) -> None:
        """Copy the weights outside the blocks to the device."""
        for index, block in enumerate(self.blocks):
            if not block.is_current():
                # For example, a LoRA was added.
                self.blocks[index] = _move_block(block.module, self.arena)
        self.root.onload()

    def offload(self) -> None:
        """Free all device memory."""
        for place in (*self._own.values(), *self._shared):
            # The memory will be reused, and a copy to it may not have finished.
            self.lane.wait(place)
            self.lane.leave(place)
        self._own.clear()
        self._shared.clear()
        self.root.offload()

    @contextmanager
    def on_device(self, index: int) -> Iterator[None]:
        """Have block `index` on the device inside a `with`, and start copying the next ones."""
        block = self.blocks[index]
        place = self._find(index) or self._fill(index, self._take(index, in_use=None, needed=self._upcoming(index)))
        self.lane.wait(place)
        try:
            for weight, tensor in zip(block.weights, self._parameters(block, place), strict=True):
                if tensor.requires_grad != weight.tensor.requires_grad:
                    # On a CPU, kernels differ by this in the last bits.
                    tensor.requires_grad_(weight.tensor.requires_grad)
                weight.put(tensor)
            self._look_ahead(index, place)
            yield
        finally:
            for weight in block.weights:
                weight.put(weight.tensor)
            self.lane.leave(place)

    def _look_ahead(self, index: int, in_use: DeviceBuffer) -> None:
        """Start copying the blocks after `index`, as far as there are buffers."""
        coming = self._upcoming(index)
        for one in self._following(index):
            if one not in self.stays and one not in coming:
                break
            if self._find(one) is None:
                self._fill(one, self._take(one, in_use=in_use, needed=coming))

    def _following(self, index: int) -> list[int]:
        count = len(self.blocks)
        return [(index + step) % count for step in range(1, count)]

    def _upcoming(self, index: int) -> list[int]:
        """Return the next blocks that need buffers, without resident ones, as many as there are other buffers."""
        places = self._most - (index not in self.stays)
        return [one for one in self._following(index) if one not in self.stays][:places]

    def _find(self, index: int) -> DeviceBuffer | None:
        own = self._own.get(index)
        return own or next((place for place in self._shared if place.holds == index), None)

    def _take(self, index: int, *, in_use: DeviceBuffer | None, needed: Sequence[int]) -> DeviceBuffer:
        """Return a buffer for block `index`: its own, a new one, or one whose block is not needed."""
        if index in self.stays:
            self._own[index] = place = self._new(self.blocks[index].size)
            return place
        if len(self._shared) < self._most:
            self._shared.append(self._new(max(self.blocks[one].size for one in self.streamed)))
            return self._shared[-1]
        return next(place for place in self._shared if place is not in_use and place.holds not in needed)

    def _new(self, size: int) -> DeviceBuffer:
        return DeviceBuffer(torch.empty(size, dtype=torch.uint8, device=self.device))

    @torch.inference_mode(False)
    @torch.no_grad()
    def _fill(self, index: int, place: DeviceBuffer) -> DeviceBuffer:
        # Set afterwards: a copy that fails half-way leaves nothing usable.
        place.holds = None
        runs = [(place.memory[begin : begin + run.numel()], run) for begin, run in self.blocks[index].runs]
        self.lane.fill(place, runs)
        place.holds = index
        return place

    @torch.inference_mode(False)
    @torch.no_grad()
    def _parameters(self, block: _Block, place: DeviceBuffer) -> list[Tensor]:
        """Return the block's weights as views of a buffer."""
        tensors = place.parameters.get(block.layout)
        if tensors is None:
            tensors = place.parameters[block.layout] = [
                of_parts(
                    weight.tensor,
                    [
                        shaped(place.memory[begin : begin + part.numel() * part.element_size()], part)
                        for begin, part in zip(begins, parts_of(weight.tensor), strict=True)
                    ],
                )
                for weight, begins in zip(block.weights, block.begins, strict=True)
            ]
        return tensors


class _StreamerHook(ModelHook):  # type: ignore[misc]
    """Not a hook of torch's: those also run for blocks that a step cache skips."""

    def __init__(self, streamer: Streamer, index: int) -> None:
        super().__init__()
        self.streamer, self.index = streamer, index

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with self.streamer.on_device(self.index):
            return self.fn_ref.original_forward(*args, **kwargs)


def _move_block(module: nn.Module, arena: Arena) -> _Block:
    """Copy a block's weights to the arena, in the order in which they will be in a buffer."""
    weights = weights_of(module)
    begins: list[list[int]] = []
    runs: list[tuple[int, list[Slice]]] = []
    end = 0

    def note(weight: Weight, slices: Sequence[Slice]) -> None:
        nonlocal end
        begins.append([])
        for one in slices:
            begins[-1].append(end)
            if runs and one.follows(runs[-1][1][-1]):
                runs[-1][1].append(one)
            else:
                runs.append((end, [one]))
            end += rounded(one.memory.numel())

    copy_to_arena(weights, arena, note)
    return _Block(
        module,
        weights,
        begins,
        end,
        tuple(layout_of(weight.tensor) for weight in weights),
        [(begin, arena.between(slices[0], slices[-1])) for begin, slices in runs],
    )
