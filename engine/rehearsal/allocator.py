"""Model torch's allocators: the caching allocator of a CUDA device, and the one of pinned memory.

Source: torch's c10/cuda/CUDACachingAllocator.cpp, and of the installed torch c10/core/AllocatorConfig.h and
ATen/core/CachingHostAllocator.h (read, and modelled here; tests/rehearsal/test_allocator.py holds the rules).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass, field

#: Sizes are rounded up to this.
ROUND = 512
MIB = 2**20
#: Blocks up to this size are cut from a small segment.
SMALL = MIB
#: Sizes requested from the driver: for small blocks; for blocks under `LARGE`; beyond, a multiple of `STEP`. The first
#: two are also the pages of expandable segments.
SMALL_SEGMENT = 2 * MIB
LARGE_SEGMENT = 20 * MIB
LARGE = 10 * MIB
STEP = 2 * MIB
#: Size of an expandable segment's address range, which is larger than the memory.
_ADDRESSES = 2**60


def rounded(size: int) -> int:
    """Return the bytes that an allocation of `size` bytes takes on a CUDA device."""
    return max(ROUND, -(-size // ROUND) * ROUND)


def pinned(size: int) -> int:
    """Return the bytes of host memory that `size` pinned bytes take: a power of two."""
    return 1 << (size - 1).bit_length() if size > 0 else 0


@dataclass(eq=False)
class Block:
    """A part of a segment, in use or free; `before` and `after` are its neighbours."""

    pool: Pool
    segment: int
    offset: int
    size: int
    free: bool = True
    #: False for addresses of an expandable segment without memory behind them.
    mapped: bool = True
    before: Block | None = field(default=None, repr=False)
    after: Block | None = field(default=None, repr=False)

    @property
    def key(self) -> tuple[int, int, int]:
        """Return the sort key of free blocks: the smallest that is large enough is the best."""
        return self.size, self.segment, self.offset

    @property
    def reach(self) -> int:
        """Return the size to which it can grow."""
        return self.size + (self.after.size if self.after is not None and not self.after.mapped else 0)


@dataclass(eq=False)
class Pool:
    """The small blocks, or the large blocks, of one stream."""

    small: bool
    #: Free blocks by size, and addresses without memory by address.
    free: list[tuple[tuple[int, int, int], Block]] = field(default_factory=list, repr=False)
    unmapped: list[tuple[int, Block]] = field(default_factory=list, repr=False)

    @property
    def page(self) -> int:
        """Return by how many bytes an expandable segment grows."""
        return SMALL_SEGMENT if self.small else LARGE_SEGMENT

    def remember(self, block: Block) -> None:
        """Add a free block."""
        if block.mapped:
            insort(self.free, (block.key, block), key=lambda entry: entry[0])
        else:
            insort(self.unmapped, (block.offset, block), key=lambda entry: entry[0])

    def forget(self, block: Block) -> None:
        """Remove a block from the free ones."""
        if block.mapped:
            del self.free[bisect_left(self.free, block.key, key=lambda entry: entry[0])]
        else:
            del self.unmapped[bisect_left(self.unmapped, block.offset, key=lambda entry: entry[0])]


class CachingAllocator:
    """Counts the memory requested from the driver while blocks are allocated and freed.

    Blocks are cut from segments, best fit, with one pool for small and one for large blocks of each stream; a free
    block is merged with its free neighbours. A completely free segment is returned to the driver by `empty_cache`, and
    when the card is full. With expandable segments each pool is one address range that grows by pages, and completely
    free pages can be returned. Blocks that another stream still uses are free at once here, as if that stream were
    done.
    """

    def __init__(self, limit: int, *, expandable: bool = False) -> None:
        """`limit`: bytes of the card for tensors."""
        self.limit, self.expandable = limit, expandable
        #: Bytes in use, bytes reserved from the driver, and the peaks of both.
        self.allocated = self.reserved = self.most_allocated = self.most_reserved = 0
        #: Bytes by which the card was too small at the peak.
        self.missing = 0
        self._pools: dict[tuple[int, bool], Pool] = {}
        self._segments = 0

    def allocate(self, size: int, stream: int = 0) -> Block:
        """Allocate a block of at least `size` bytes for a stream."""
        size = rounded(size)
        pool = self._pool(stream, size <= SMALL)
        block = self._best(pool, size)
        if block is None:
            block = self._grow(pool, size) if self.expandable else self._ask(pool, size)
        self._trim(block, size)
        block.free = False
        self.allocated += block.size
        self.most_allocated = max(self.most_allocated, self.allocated)
        return block

    def free(self, block: Block) -> None:
        """Free a block."""
        self.allocated -= block.size
        block.free = True
        block.pool.remember(_joined(block))

    def empty_cache(self) -> None:
        """Return to the driver what is free: segments, or pages of expandable segments."""
        for pool in self._pools.values():
            for _, block in list(pool.free):
                if self.expandable:
                    self._unmap(block)
                elif block.before is None and block.after is None:
                    pool.forget(block)
                    self.reserved -= block.size

    def reset_peak(self) -> None:
        """Reset the peaks."""
        self.most_allocated, self.most_reserved = self.allocated, self.reserved

    # --- inside -------------------------------------------------------------------------------------------------------

    def _pool(self, stream: int, small: bool) -> Pool:
        pool = self._pools.get((stream, small))
        if pool is None:
            pool = self._pools[stream, small] = Pool(small)
            if self.expandable:
                self._segments += 1
                pool.remember(Block(pool, self._segments, 0, _ADDRESSES, mapped=False))
        return pool

    def _best(self, pool: Pool, size: int) -> Block | None:
        index = bisect_left(pool.free, (size, -1, -1), key=lambda entry: entry[0])
        if index == len(pool.free):
            return None
        while index + 1 < len(pool.free) and pool.free[index + 1][1].reach < pool.free[index][1].reach:
            # Blocks that can grow are kept for requests that need it.
            index += 1
        return pool.free.pop(index)[1]

    def _take(self, size: int) -> None:
        self.reserved += size
        self.most_reserved = max(self.most_reserved, self.reserved)
        self.missing = max(self.missing, self.reserved - self.limit)

    def _ask(self, pool: Pool, size: int) -> Block:
        """Return a new segment that is in no pool yet."""
        request = SMALL_SEGMENT if pool.small else LARGE_SEGMENT if size < LARGE else -(-size // STEP) * STEP
        if self.reserved + request > self.limit:
            self.empty_cache()
        self._take(request)
        self._segments += 1
        return Block(pool, self._segments, 0, request)

    def _grow(self, pool: Pool, size: int) -> Block:
        """Map memory at the lowest addresses where `size` bytes are free, and return that block, removed from the pool.

        Some of it may be mapped already.
        """
        block = _lowest(pool, size)
        if self.reserved + _missing(block, size) > self.limit:
            self.empty_cache()
            block = _lowest(pool, size)
        if not block.mapped:
            block = self._map(block, min(block.size, size))
        while block.size < size:
            hole = block.after
            assert hole is not None
            block = self._map(hole, min(size - block.size, hole.size))
        pool.forget(block)
        return block

    def _map(self, block: Block, size: int) -> Block:
        """Map the first `size` bytes of an unmapped block, by pages; return the mapped block, which is in its pool."""
        pool = block.pool
        size = -(-size // pool.page) * pool.page
        pool.forget(block)
        if size < block.size:
            pool.remember(_split(block, size))
        block.mapped = True
        self._take(size)
        block = _joined(block)
        pool.remember(block)
        return block

    def _unmap(self, block: Block) -> None:
        """Return completely free pages to the driver; the rest of the block on both sides stays."""
        pool = block.pool
        first = -(-block.offset // pool.page) * pool.page
        last = (block.offset + block.size) // pool.page * pool.page
        if last <= first:
            return
        pool.forget(block)
        if last < block.offset + block.size:
            pool.remember(_split(block, last - block.offset))
        if first > block.offset:
            rest = _split(block, first - block.offset)
            pool.remember(block)
            block = rest
        block.mapped = False
        self.reserved -= block.size
        pool.remember(_joined(block))

    def _trim(self, block: Block, size: int) -> None:
        remainder = block.size - size
        if remainder >= ROUND if block.pool.small or self.expandable else remainder > SMALL:
            block.pool.remember(_split(block, size))


def _split(block: Block, size: int) -> Block:
    """Split a block that is in no pool after `size` bytes; return the rest."""
    rest = Block(block.pool, block.segment, block.offset + size, block.size - size, mapped=block.mapped)
    rest.before, rest.after = block, block.after
    if rest.after is not None:
        rest.after.before = rest
    block.size, block.after = size, rest
    return rest


def _joined(block: Block) -> Block:
    """Merge a block that is in no pool with its free neighbours of the same kind, and return it."""
    before, after = block.before, block.after
    if before is not None and before.free and before.mapped == block.mapped:
        block.pool.forget(before)
        block.offset, block.size, block.before = before.offset, before.size + block.size, before.before
        if block.before is not None:
            block.before.after = block
    if after is not None and after.free and after.mapped == block.mapped:
        block.pool.forget(after)
        block.size, block.after = block.size + after.size, after.after
        if block.after is not None:
            block.after.before = block
    return block


def _run(block: Block) -> Iterator[Block]:
    """Yield a block and those that follow it, as long as they are free."""
    here: Block | None = block
    while here is not None and here.free:
        yield here
        here = here.after


def _lowest(pool: Pool, size: int) -> Block:
    """Return the first block of the lowest free addresses of an expandable segment that `size` bytes fit into."""
    for _, hole in pool.unmapped:
        begin = hole.before if hole.before is not None and hole.before.free else hole
        total = 0
        for block in _run(begin):
            total += block.size
            if total >= size:
                return begin
    raise AssertionError("the address range has no end")


def _missing(block: Block, size: int) -> int:
    """Return how many bytes must be mapped for `size` bytes from the beginning of `block`."""
    pages, remaining = 0, size
    for one in _run(block):
        if remaining <= 0:
            break
        if not one.mapped:
            pages += min(-(-remaining // one.pool.page) * one.pool.page, one.size)
        remaining -= one.size
    return pages
