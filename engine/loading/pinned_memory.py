"""Host memory for weights that a GPU reads repeatedly: large pieces, pinned once, divided into slices."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.loading.slots import Weight, of_parts, parts_of

logger = logging.getLogger(__name__)

#: Alignment of slices, bytes: no kernel needs more.
STEP = 512
#: Largest piece, bytes. torch's allocator of pinned memory rounds up to powers of two, so pieces are powers of two.
PIECE = 2**31


@dataclass(frozen=True)
class Slice:
    """A part of an arena: `memory`, which begins at byte `begin` of piece number `piece`."""

    piece: int
    begin: int
    memory: Tensor

    def follows(self, other: Slice) -> bool:
        """Return whether this slice begins where `other` ends, apart from rounding."""
        return self.piece == other.piece and self.begin == other.begin + rounded(other.memory.numel())


class Arena:
    """Allocates host memory in slices. A piece is freed when nothing refers to its slices."""

    def __init__(self, total: int, *, pinned: bool) -> None:
        """Allocate nothing yet; about `total` bytes will be needed, with each slice rounded up by `rounded`."""
        self.pinned = pinned
        self._still_needed = total
        self._pieces: list[Tensor] = []
        self._used: list[int] = []
        self._last = 0

    @property
    def size(self) -> int:
        """Bytes allocated on the host so far."""
        return sum(piece.numel() for piece in self._pieces)

    def take(self, size: int) -> Slice:
        """Return a slice of `size` bytes: the next ones, or a gap that earlier slices left."""
        room = rounded(size)
        # Adjacent slices can be copied in one operation.
        order = sorted(range(len(self._pieces)), key=lambda index: index != self._last)
        fitting = (index for index in order if self._used[index] + room <= self._pieces[index].numel())
        index = next(fitting, None)
        if index is None:
            index = self._last = self._grow(room)
        begin = self._used[index]
        self._used[index] += room
        self._still_needed -= room
        return Slice(index, begin, self._pieces[index][begin : begin + size])

    def between(self, first: Slice, last: Slice) -> Tensor:
        """Return the bytes from the beginning of a slice to the end of another one of the same piece."""
        return self._pieces[first.piece][first.begin : last.begin + last.memory.numel()]

    def _grow(self, room: int) -> int:
        # The last pieces get smaller, so that little memory is wasted.
        most = min(PIECE, 1 << max(0, self._still_needed.bit_length() - 1))
        size = max(most, 1 << (room - 1).bit_length() if room > 1 else STEP)
        self._pieces.append(self._memory(size))
        self._used.append(0)
        return len(self._pieces) - 1

    def _memory(self, size: int) -> Tensor:
        if self.pinned:
            try:
                return torch.empty(size, dtype=torch.uint8, pin_memory=True)
            except RuntimeError as error:
                # Results are the same, only slower.
                logger.warning("weights are not pinned from here on: %s", str(error).partition("\n")[0])
                self.pinned = False
        return torch.empty(size, dtype=torch.uint8)


def rounded(size: int) -> int:
    """Return the bytes that a slice of `size` bytes occupies."""
    return -(-size // STEP) * STEP


def shaped(memory: Tensor, like: Tensor) -> Tensor:
    """View bytes as a tensor with the dtype and shape of `like`."""
    return memory.view(like.dtype).view(like.shape)


@torch.no_grad()
def copy_to_arena(
    weights: Sequence[Weight], arena: Arena, on_copied: Callable[[Weight, Sequence[Slice]], None] = lambda _, __: None
) -> None:
    """Copy `weights` into `arena` one by one and drop each original; `on_copied` is called with the new slices.

    So the host needs at most the memory of all weights, of one more weight, and of one piece.
    """
    for weight in weights:
        slices, parts = [], []
        for part in parts_of(weight.tensor):
            slices.append(arena.take(part.numel() * part.element_size()))
            parts.append(shaped(slices[-1].memory, part).copy_(part))
        weight.tensor = of_parts(weight.tensor, parts)
        weight.put(weight.tensor)
        on_copied(weight, slices)
