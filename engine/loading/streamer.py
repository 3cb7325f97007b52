"""A network whose blocks come to the device one after the other, the next ones while one computes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from diffusers.hooks import HookRegistry, ModelHook
from torch import Tensor, nn

from engine.loading.mover import Mover
from engine.loading.pinned_memory import Arena, Slice, rounded, settle, shaped
from engine.loading.slots import Weight, kind_of, of_parts, parts_of, weights_of

_HOOK = "multitalk_streamer"


@dataclass
class Place:
    """Memory on the device that holds one block at a time."""

    memory: Tensor
    #: Index of the block that is here or on its way.
    holds: int | None = None
    #: Parameters over the memory, by the layout of a block: blocks alike share them.
    dressed: dict[tuple[str, ...], list[Tensor]] = field(default_factory=dict)
    #: What a lane remembers: the end of the copy to this place, and of the computing in it.
    filled: Any = None
    free: Any = None


class Lane(Protocol):
    """The way from the host's memory to places on the device."""

    def fill(self, place: Place, runs: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Copy to a place (to, from), once the computing that was begun in it is done."""
        ...

    def wait(self, place: Place) -> None:
        """Let what is computed from now on begin when the place is filled."""
        ...

    def leave(self, place: Place) -> None:
        """Say that all computing in a place has been asked for."""
        ...


class Inline:
    """Copies in order with everything else: on a CPU, and on a GPU without a stream of its own."""

    def fill(self, place: Place, runs: Sequence[tuple[Tensor, Tensor]]) -> None:
        for to, source in runs:
            to.copy_(source, non_blocking=True)

    def wait(self, place: Place) -> None:
        pass

    def leave(self, place: Place) -> None:
        pass


class Beside:
    """Copies on a stream of its own. Streams wait for each other by events, and the host for neither."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self.stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]

    def fill(self, place: Place, runs: Sequence[tuple[Tensor, Tensor]]) -> None:
        if place.free is None:
            # Fresh memory may be that of a tensor whose last use is still to come.
            place.free = torch.cuda.Event()  # type: ignore[no-untyped-call]
            place.filled = torch.cuda.Event()  # type: ignore[no-untyped-call]
            place.free.record(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            self.stream.wait_event(place.free)
            for to, source in runs:
                to.copy_(source, non_blocking=True)
            place.filled.record(self.stream)

    def wait(self, place: Place) -> None:
        if place.filled is not None:
            torch.cuda.current_stream(self.device).wait_event(place.filled)

    def leave(self, place: Place) -> None:
        place.free.record(torch.cuda.current_stream(self.device))


@dataclass
class _Block:
    """One block: its weights on the host, and where each part of them goes in a place."""

    module: nn.Module
    weights: list[Weight]
    #: Bytes of a place up to the parts of each weight.
    begins: list[list[int]]
    size: int
    layout: tuple[str, ...]
    #: Bytes of a place up to them, and what goes there in one copy.
    runs: list[tuple[int, Tensor]]

    def is_settled(self) -> bool:
        """Say whether its weights are still those that were copied."""
        now = weights_of(self.module)
        return len(now) == len(self.weights) and all(
            one.tensor is other.tensor for one, other in zip(now, self.weights, strict=True)
        )


class Streamer:
    """Keeps a network's blocks in the host's memory, and has each on the device while it computes.

    A block's weights are copied to a place when it is entered, unless they are there; the next ones are on their way
    then. Where the order is another than by number, as where a step cache passes blocks over, what was not foreseen is
    copied when it is entered. Nothing is copied back. What is in no block is on the device between `come` and `go`.
    """

    def __init__(
        self,
        network: Any,
        device: str,
        *,
        arena: Arena,
        ahead: int = 1,
        resident: int = 0,
        lane: Lane | None = None,
    ) -> None:
        """Move the weights to `arena` and hook the blocks.

        `ahead` blocks come while one computes, `resident` ones stay between `come` and `go` once they came.
        """
        self.network, self.device, self.arena = network, device, arena
        self.lane: Lane = lane or Inline()
        blocks: list[nn.Module] = list(network.blocks)
        self.root = Mover(network, device, apart=blocks)
        # First, for the largest tensor is there.
        settle(weights_of(network, apart=blocks), arena)
        self.blocks = [_settled(block, arena) for block in blocks]
        #: Evenly among the others, so that while they compute others come.
        self.kept = {
            index
            for index in range(len(blocks))
            if (index + 1) * resident // len(blocks) > index * resident // len(blocks)
        }
        self.turn = [index for index in range(len(blocks)) if index not in self.kept]
        self._most = min(ahead + 1, len(self.turn))
        self._own: dict[int, Place] = {}
        self._shared: list[Place] = []
        for index, block in enumerate(blocks):
            registry = HookRegistry.check_if_exists_or_initialize(block)
            registry.register_hook(_StreamerHook(self, index), _HOOK)

    def come(self) -> None:
        """Have what is in no block on the device."""
        for index, block in enumerate(self.blocks):
            if not block.is_settled():
                # A LoRA came, for instance.
                self.blocks[index] = _settled(block.module, self.arena)
        self.root.come()

    def go(self) -> None:
        """Leave nothing on the device."""
        for place in (*self._own.values(), *self._shared):
            # The memory goes to who computes next, and a copy to it may not have ended.
            self.lane.wait(place)
            self.lane.leave(place)
        self._own.clear()
        self._shared.clear()
        self.root.go()

    @contextmanager
    def entered(self, index: int) -> Iterator[None]:
        """Have block `index` on the device inside a `with`, and the next ones on their way."""
        block = self.blocks[index]
        place = self._find(index) or self._fill(index, self._take(index, in_use=None, wanted=self._coming(index)))
        self.lane.wait(place)
        try:
            for weight, tensor in zip(block.weights, self._dressed(block, place), strict=True):
                if tensor.requires_grad != weight.tensor.requires_grad:
                    # Kernels differ in their last bits by it, on a CPU.
                    tensor.requires_grad_(weight.tensor.requires_grad)
                weight.put(tensor)
            self._look_ahead(index, place)
            yield
        finally:
            for weight in block.weights:
                weight.put(weight.tensor)
            self.lane.leave(place)

    def _look_ahead(self, index: int, in_use: Place) -> None:
        """Have the blocks after `index` come, as far as there are places."""
        coming = self._coming(index)
        for one in self._following(index):
            if one not in self.kept and one not in coming:
                break
            if self._find(one) is None:
                self._fill(one, self._take(one, in_use=in_use, wanted=coming))

    def _following(self, index: int) -> list[int]:
        count = len(self.blocks)
        return [(index + step) % count for step in range(1, count)]

    def _coming(self, index: int) -> list[int]:
        """Return the blocks after `index` for which there are places beside its own, but for those that stay."""
        places = self._most - (index not in self.kept)
        return [one for one in self._following(index) if one not in self.kept][:places]

    def _find(self, index: int) -> Place | None:
        found = self._own.get(index)
        return found or next((place for place in self._shared if place.holds == index), None)

    def _take(self, index: int, *, in_use: Place | None, wanted: Sequence[int]) -> Place:
        """Return a place for block `index`: its own, a new one, or one whose block is not wanted."""
        if index in self.kept:
            self._own[index] = place = self._new(self.blocks[index].size)
            return place
        if len(self._shared) < self._most:
            self._shared.append(self._new(max(self.blocks[one].size for one in self.turn)))
            return self._shared[-1]
        return next(place for place in self._shared if place is not in_use and place.holds not in wanted)

    def _new(self, size: int) -> Place:
        return Place(torch.empty(size, dtype=torch.uint8, device=self.device))

    @torch.inference_mode(False)
    @torch.no_grad()
    def _fill(self, index: int, place: Place) -> Place:
        # Not known to hold it before: who fails half-way has nothing there.
        place.holds = None
        runs = [(place.memory[begin : begin + run.numel()], run) for begin, run in self.blocks[index].runs]
        self.lane.fill(place, runs)
        place.holds = index
        return place

    @torch.inference_mode(False)
    @torch.no_grad()
    def _dressed(self, block: _Block, place: Place) -> list[Tensor]:
        """Return the block's weights as they stand in a place."""
        found = place.dressed.get(block.layout)
        if found is None:
            found = place.dressed[block.layout] = [
                of_parts(
                    weight.tensor,
                    [
                        shaped(place.memory[begin : begin + part.numel() * part.element_size()], part)
                        for begin, part in zip(begins, parts_of(weight.tensor), strict=True)
                    ],
                )
                for weight, begins in zip(block.weights, block.begins, strict=True)
            ]
        return found


class _StreamerHook(ModelHook):  # type: ignore[misc]
    """Not a hook of torch's: those run for a block that a step cache passes over, too."""

    def __init__(self, streamer: Streamer, index: int) -> None:
        super().__init__()
        self.streamer, self.index = streamer, index

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with self.streamer.entered(self.index):
            return self.fn_ref.original_forward(*args, **kwargs)


def _settled(module: nn.Module, arena: Arena) -> _Block:
    """Move a block's weights to the arena, one after the other as they will lie in a place."""
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

    settle(weights, arena, note)
    return _Block(
        module,
        weights,
        begins,
        end,
        tuple(kind_of(weight.tensor) for weight in weights),
        [(begin, arena.between(slices[0], slices[-1])) for begin, slices in runs],
    )
