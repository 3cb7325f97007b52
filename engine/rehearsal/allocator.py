"""How torch's allocators hand out memory: the caching allocator of a CUDA device, and the one of pinned memory.

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
#: Up to this a block is cut from a small segment.
SMALL = MIB
#: What is asked of the driver: for small blocks; for blocks under `LARGE`; a multiple of `STEP` beyond. The first two
#: are the pages of expandable segments, too.
SMALL_SEGMENT = 2 * MIB
LARGE_SEGMENT = 20 * MIB
LARGE = 10 * MIB
STEP = 2 * MIB
#: Addresses that an expandable segment may reach; there is more of them than of memory.
_ADDRESSES = 2**60


def rounded(size: int) -> int:
    """Return the bytes that an allocation of `size` bytes takes on a CUDA device."""
    return max(ROUND, -(-size // ROUND) * ROUND)


def pinned(size: int) -> int:
    """Return the bytes of host memory that `size` pinned bytes take: a power of two."""
    return 1 << (size - 1).bit_length() if size > 0 else 0


@dataclass(eq=False)
class Block:
    """A stretch of a segment, handed out or free; `before` and `after` are its neighbours there."""

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
        """Return what free blocks are ordered by: the smallest that is large enough is the best."""
        return self.size, self.segment, self.offset

    @property
    def reach(self) -> int:
        """Return the size to which it can grow."""
        return self.size + (self.after.size if self.after is not None and not self.after.mapped else 0)


@dataclass(eq=False)
class Pool:
    """The blocks of one stream that are small, or that are not."""

    small: bool
    #: Free blocks by size, and addresses without memory by address.
    free: list[tuple[tuple[int, int, int], Block]] = field(default_factory=list, repr=False)
    unmapped: list[tuple[int, Block]] = field(default_factory=list, repr=False)

    @property
    def page(self) -> int:
        """Return what an expandable segment grows by."""
        return SMALL_SEGMENT if self.small else LARGE_SEGMENT

    def remember(self, block: Block) -> None:
        """Note that a block is free."""
        if block.mapped:
            insort(self.free, (block.key, block), key=lambda entry: entry[0])
        else:
            insort(self.unmapped, (block.offset, block), key=lambda entry: entry[0])

    def forget(self, block: Block) -> None:
        """Take a free block out of what is free."""
        if block.mapped:
            del self.free[bisect_left(self.free, block.key, key=lambda entry: entry[0])]
        else:
            del self.unmapped[bisect_left(self.unmapped, block.offset, key=lambda entry: entry[0])]


class CachingAllocator:
    """Counts what the driver is asked for while blocks come and go.

    Blocks are cut from segments, best fit, one pool for small and one for large blocks of each stream; a free block
    joins its free neighbours. A segment that is free as a whole goes back to the driver by `empty_cache`, and when the
    card is full. With expandable segments each pool is one range of addresses that grows by pages, and all pages that
    are free as a whole can be given back. Blocks that another stream still uses are free at once here, as if it were
    done.
    """

    def __init__(self, limit: int, *, expandable: bool = False) -> None:
        """`limit`: what the card has for tensors, in bytes."""
        self.limit, self.expandable = limit, expandable
        #: Bytes handed out, bytes held from the driver, and the most of both.
        self.allocated = self.reserved = self.most_allocated = self.most_reserved = 0
        #: Bytes by which the card was too small at the worst moment.
        self.missing = 0
        self._pools: dict[tuple[int, bool], Pool] = {}
        self._segments = 0

    def allocate(self, size: int, stream: int = 0) -> Block:
        """Hand out a block of at least `size` bytes to a stream."""
        size = rounded(size)
        pool = self._pool(stream, size <= SMALL)
        block = self._best(pool, size)
        if block is None:
            block = self._grow(pool, size) if self.expandable else self._ask(pool, size)
        self._cut(block, size)
        block.free = False
        self.allocated += block.size
        self.most_allocated = max(self.most_allocated, self.allocated)
        return block

    def free(self, block: Block) -> None:
        """Take a block back."""
        self.allocated -= block.size
        block.free = True
        block.pool.remember(_joined(block))

    def empty_cache(self) -> None:
        """Give back to the driver what it takes: free segments, or with expandable segments the free pages."""
        for pool in self._pools.values():
            for _, block in list(pool.free):
                if self.expandable:
                    self._unmap(block)
                elif block.before is None and block.after is None:
                    pool.forget(block)
                    self.reserved -= block.size

    def reset_peak(self) -> None:
        """Count the peaks anew from here on."""
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
            # What can grow is kept for those that need it.
            index += 1
        return pool.free.pop(index)[1]

    def _take(self, size: int) -> None:
        self.reserved += size
        self.most_reserved = max(self.most_reserved, self.reserved)
        self.missing = max(self.missing, self.reserved - self.limit)

    def _ask(self, pool: Pool, size: int) -> Block:
        """Return a new segment, which is in no pool yet."""
        wanted = SMALL_SEGMENT if pool.small else LARGE_SEGMENT if size < LARGE else -(-size // STEP) * STEP
        if self.reserved + wanted > self.limit:
            self.empty_cache()
        self._take(wanted)
        self._segments += 1
        return Block(pool, self._segments, 0, wanted)

    def _grow(self, pool: Pool, size: int) -> Block:
        """Put memory behind the lowest addresses where `size` bytes are free, and return that block, out of the pool.

        Some of them may have memory already.
        """
        chosen = _lowest(pool, size)
        if self.reserved + _missing(chosen, size) > self.limit:
            self.empty_cache()
            chosen = _lowest(pool, size)
        if not chosen.mapped:
            chosen = self._map(chosen, min(chosen.size, size))
        while chosen.size < size:
            hole = chosen.after
            assert hole is not None
            chosen = self._map(hole, min(size - chosen.size, hole.size))
        pool.forget(chosen)
        return chosen

    def _map(self, block: Block, size: int) -> Block:
        """Put memory behind the first `size` of addresses without, by pages; return what it became, in its pool."""
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
        """Give the pages back that are free as a whole; what is left of the block on either side stays."""
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

    def _cut(self, block: Block, size: int) -> None:
        left = block.size - size
        if left >= ROUND if block.pool.small or self.expandable else left > SMALL:
            block.pool.remember(_split(block, size))


def _split(block: Block, size: int) -> Block:
    """Cut a block, which is in no pool, after `size` bytes; return the rest."""
    rest = Block(block.pool, block.segment, block.offset + size, block.size - size, mapped=block.mapped)
    rest.before, rest.after = block, block.after
    if rest.after is not None:
        rest.after.before = rest
    block.size, block.after = size, rest
    return rest


def _joined(block: Block) -> Block:
    """Return a block, which is in no pool, with its free neighbours of the same kind."""
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
    raise AssertionError("addresses do not end")


def _missing(block: Block, size: int) -> int:
    """Return the bytes of memory that `size` bytes from the beginning of `block` lack."""
    wanted, left = 0, size
    for one in _run(block):
        if left <= 0:
            break
        if not one.mapped:
            wanted += min(-(-left // one.pool.page) * one.pool.page, one.size)
        left -= one.size
    return wanted
