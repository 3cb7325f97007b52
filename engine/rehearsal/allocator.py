"""How torch's allocators hand out memory: the caching allocator of a CUDA device, and the one of pinned memory.

Source: torch 2.13, c10/cuda/CUDACachingAllocator.cpp and aten/src/ATen/core/CachingHostAllocator.h (read, and modelled
here; tests/test_rehearsal_allocator.py holds the rules).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass, field

#: Sizes are rounded up to this.
ROUND = 512
MIB = 2**20
#: Up to this a block is cut from a small segment.
SMALL = MIB
#: What is asked of the driver: for small blocks; for blocks under `_LARGE`; a multiple of `_STEP` beyond.
_SMALL_SEGMENT = 2 * MIB
_LARGE_SEGMENT = 20 * MIB
_LARGE = 10 * MIB
_STEP = 2 * MIB


def rounded(size: int) -> int:
    """Return the bytes that an allocation of `size` bytes takes on a CUDA device."""
    return max(ROUND, -(-size // ROUND) * ROUND)


def pinned(size: int) -> int:
    """Return the bytes of host memory that `size` pinned bytes take: a power of two."""
    return 1 << (size - 1).bit_length() if size > 0 else 0


@dataclass(eq=False)
class Block:
    """A stretch of a segment, handed out or free; `before` and `after` are its neighbours there."""

    segment: int
    offset: int
    size: int
    small: bool
    free: bool = True
    before: Block | None = field(default=None, repr=False)
    after: Block | None = field(default=None, repr=False)

    @property
    def key(self) -> tuple[int, int, int]:
        """Return what free blocks are ordered by: the smallest that is large enough is the best."""
        return self.size, self.segment, self.offset


class CachingAllocator:
    """Counts what the driver is asked for while blocks come and go.

    Blocks are cut from segments, best fit, one pool for small and one for large blocks; a free block joins its free
    neighbours. A segment that is free as a whole goes back to the driver by `empty_cache`, and when the card is full.
    With expandable segments each pool is one range of addresses that grows by pages at its end, and all pages that are
    free as a whole can be given back.
    """

    def __init__(self, limit: int, *, expandable: bool = False) -> None:
        """`limit`: what the card has for tensors, in bytes."""
        self.limit, self.expandable = limit, expandable
        #: Bytes handed out, bytes held from the driver, and the most of both.
        self.allocated = self.reserved = self.most_allocated = self.most_reserved = 0
        #: Bytes by which the card was too small at the worst moment.
        self.missing = 0
        self._free: dict[bool, list[tuple[tuple[int, int, int], Block]]] = {True: [], False: []}
        self._segments = 0
        self._tails: dict[bool, Block | None] = {True: None, False: None}

    def allocate(self, size: int) -> Block:
        """Hand out a block of at least `size` bytes."""
        size = rounded(size)
        small = size <= SMALL
        block = self._best(size, small) or self._grow(size, small)
        self._cut(block, size)
        block.free = False
        self.allocated += block.size
        self.most_allocated = max(self.most_allocated, self.allocated)
        return block

    def free(self, block: Block) -> None:
        """Take a block back."""
        self.allocated -= block.size
        block.free = True
        before, after = block.before, block.after
        if before is not None and before.free:
            self._forget(before)
            block = self._join(before, block)
        if after is not None and after.free:
            self._forget(after)
            block = self._join(block, after)
        self._remember(block)

    def empty_cache(self) -> None:
        """Give back to the driver what it takes: free segments, or with expandable segments the free pages."""
        for small in (True, False):
            page = _SMALL_SEGMENT if small else _LARGE_SEGMENT
            for _, block in list(self._free[small]):
                if self.expandable:
                    first, last = -(-block.offset // page) * page, (block.offset + block.size) // page * page
                    self._take_out(block, first, last)
                elif block.before is None and block.after is None:
                    self._take_out(block, block.offset, block.offset + block.size)

    def reset_peak(self) -> None:
        """Count the peaks anew from here on."""
        self.most_allocated, self.most_reserved = self.allocated, self.reserved

    # --- inside -------------------------------------------------------------------------------------------------------

    def _best(self, size: int, small: bool) -> Block | None:
        pool = self._free[small]
        index = bisect_left(pool, (size, -1, -1), key=lambda entry: entry[0])
        return pool.pop(index)[1] if index < len(pool) else None

    def _grow(self, size: int, small: bool) -> Block:
        """Ask the driver for more; the block that comes of it is in no pool yet."""
        tail = self._tails[small] if self.expandable else None
        grown = tail if tail is not None and tail.free else None
        if self.expandable:
            page = _SMALL_SEGMENT if small else _LARGE_SEGMENT
            wanted = -(-(size - (grown.size if grown else 0)) // page) * page
        else:
            wanted = _SMALL_SEGMENT if small else _LARGE_SEGMENT if size < _LARGE else -(-size // _STEP) * _STEP
        if self.reserved + wanted > self.limit:
            self.empty_cache()
            tail = self._tails[small] if self.expandable else None
            if grown is not None and tail is not grown:
                # It went back as well, so all of the block is asked for anew.
                return self._grow(size, small)
        self.reserved += wanted
        self.most_reserved = max(self.most_reserved, self.reserved)
        self.missing = max(self.missing, self.reserved - self.limit)
        if grown is not None:
            self._forget(grown)
            grown.size += wanted
            return grown
        if self.expandable:
            block = Block(0, 0 if tail is None else tail.offset + tail.size, wanted, small, before=tail)
            if tail is not None:
                tail.after = block
            self._tails[small] = block
            return block
        self._segments += 1
        return Block(self._segments, 0, wanted, small)

    def _cut(self, block: Block, size: int) -> None:
        left = block.size - size
        if left < (ROUND if block.small or self.expandable else SMALL + 1):
            return
        rest = Block(block.segment, block.offset + size, left, block.small, before=block, after=block.after)
        if rest.after is not None:
            rest.after.before = rest
        block.size, block.after = size, rest
        if self._tails[block.small] is block:
            self._tails[block.small] = rest
        self._remember(rest)

    def _join(self, first: Block, second: Block) -> Block:
        first.size += second.size
        first.after = second.after
        if first.after is not None:
            first.after.before = first
        if self._tails[first.small] is second:
            self._tails[first.small] = first
        first.free = True
        return first

    def _remember(self, block: Block) -> None:
        insort(self._free[block.small], (block.key, block), key=lambda entry: entry[0])

    def _forget(self, block: Block) -> None:
        pool = self._free[block.small]
        index = bisect_left(pool, block.key, key=lambda entry: entry[0])
        assert pool[index][1] is block
        del pool[index]

    def _take_out(self, block: Block, first: int, last: int) -> None:
        """Give the addresses `first` to `last` of a free block back; what is left of it on either side stays."""
        if last <= first:
            return
        self._forget(block)
        self.reserved -= last - first
        before, after, end = block.before, block.after, block.offset + block.size
        tail = self._tails[block.small] is block
        head = rest = None
        if first > block.offset:
            head = Block(block.segment, block.offset, first - block.offset, block.small, before=before)
        if end > last:
            rest = Block(block.segment, last, end - last, block.small, after=after)
        if before is not None:
            before.after = head
        if after is not None:
            after.before = rest
        for left in (head, rest):
            if left is not None:
                self._remember(left)
        if tail:
            # The range goes on behind what is mapped.
            self._tails[block.small] = rest or head or before
