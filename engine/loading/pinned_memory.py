"""Memory of the host for weights that a GPU asks for again and again: large pieces, pinned once, given in slices."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.loading.slots import Weight, of_parts, parts_of

logger = logging.getLogger(__name__)

#: Slices begin at multiples of so many bytes: no kernel asks for more.
STEP = 512
#: The largest piece. torch's allocator of pinned memory hands out powers of two, so pieces are such.
PIECE = 2**31


@dataclass(frozen=True)
class Slice:
    """Bytes of an arena: those of `memory`, which begin at `begin` of piece number `piece`."""

    piece: int
    begin: int
    memory: Tensor

    def follows(self, other: Slice) -> bool:
        """Say whether this one begins where `other` ends, but for what its end was rounded up by."""
        return self.piece == other.piece and self.begin == other.begin + rounded(other.memory.numel())


class Arena:
    """Hands out memory on the host. It lives as long as anybody has a slice."""

    def __init__(self, total: int, *, pinned: bool) -> None:
        """Take nothing yet; `total` bytes, each slice rounded up by `rounded`, are going to be wanted about."""
        self.pinned = pinned
        self._wanted = total
        self._pieces: list[Tensor] = []
        self._used: list[int] = []
        self._last = 0

    @property
    def size(self) -> int:
        """Bytes taken of the host so far."""
        return sum(piece.numel() for piece in self._pieces)

    def take(self, size: int) -> Slice:
        """Return `size` bytes: the next ones, or where others have left room."""
        room = rounded(size)
        # What follows on each other is copied at once.
        order = sorted(range(len(self._pieces)), key=lambda index: index != self._last)
        fitting = (index for index in order if self._used[index] + room <= self._pieces[index].numel())
        index = next(fitting, None)
        if index is None:
            index = self._last = self._grow(room)
        begin = self._used[index]
        self._used[index] += room
        self._wanted -= room
        return Slice(index, begin, self._pieces[index][begin : begin + size])

    def between(self, first: Slice, last: Slice) -> Tensor:
        """Return the bytes from the beginning of a slice to the end of another one of the same piece."""
        return self._pieces[first.piece][first.begin : last.begin + last.memory.numel()]

    def _grow(self, room: int) -> int:
        # The last pieces are smaller and smaller, so that little is left over.
        most = min(PIECE, 1 << max(0, self._wanted.bit_length() - 1))
        size = max(most, 1 << (room - 1).bit_length() if room > 1 else STEP)
        self._pieces.append(self._memory(size))
        self._used.append(0)
        return len(self._pieces) - 1

    def _memory(self, size: int) -> Tensor:
        if self.pinned:
            try:
                return torch.empty(size, dtype=torch.uint8, pin_memory=True)
            except RuntimeError as error:
                # Frames are the same, and slower to make.
                logger.warning("weights are not pinned from here on: %s", str(error).partition("\n")[0])
                self.pinned = False
        return torch.empty(size, dtype=torch.uint8)


def rounded(size: int) -> int:
    """Return the bytes that a slice of `size` takes."""
    return -(-size // STEP) * STEP


def shaped(memory: Tensor, like: Tensor) -> Tensor:
    """Return bytes as a tensor of the dtype and shape of `like`."""
    return memory.view(like.dtype).view(like.shape)


@torch.no_grad()
def settle(
    weights: Sequence[Weight], arena: Arena, tell: Callable[[Weight, Sequence[Slice]], None] = lambda _, __: None
) -> None:
    """Copy `weights` into `arena` one by one and let go of each where it was; `tell` hears where it is now.

    So the host never holds more than all of them, one twice, and a piece.
    """
    for weight in weights:
        slices, parts = [], []
        for part in parts_of(weight.tensor):
            slices.append(arena.take(part.numel() * part.element_size()))
            parts.append(shaped(slices[-1].memory, part).copy_(part))
        weight.tensor = of_parts(weight.tensor, parts)
        weight.put(weight.tensor)
        tell(weight, slices)
