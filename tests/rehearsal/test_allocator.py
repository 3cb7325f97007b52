"""The model of torch's allocators: its figures against the installed torch's headers, its rules against their source.

What is modelled: c10/cuda/CUDACachingAllocator.cpp (`get_allocation_size`, `should_split`, `get_free_block`,
`try_allocate_expandable_block`, `release_cached_blocks`) and ATen/core/CachingHostAllocator.h (`allocate`).
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.rehearsal import allocator
from engine.rehearsal.allocator import MIB, Block, CachingAllocator, pinned, rounded

LIMIT = 2**40
#: Sizes of all kinds: small, between small and large, large; and a step: how many of what is live are let go.
SIZES = st.integers(1, 2 * MIB) | st.integers(1, 64 * MIB)
TRACES = st.lists(st.tuples(SIZES, st.integers(0, 3), st.integers(0, 1)), min_size=1, max_size=40)


def header(path: str) -> str:
    import torch

    return (Path(torch.__file__).parent / "include" / path).read_text("utf-8")


@pytest.mark.parametrize(
    ("pattern", "figure"),
    [
        (r"kMinBlockSize = (\d+)", allocator.ROUND),
        (r"kSmallSize = (\d+)", allocator.SMALL),
        (r"kSmallBuffer = (\d+)", allocator.SMALL_SEGMENT),
        (r"large_segment_size_\{(\d+)\}", allocator.LARGE_SEGMENT),
        (r"kMinLargeAlloc = (\d+)", allocator.LARGE),
        (r"kRoundLarge = (\d+)", allocator.STEP),
    ],
)
def test_figures_are_those_of_the_installed_torch(pattern: str, figure: int) -> None:
    result = re.search(pattern, header("c10/core/AllocatorConfig.h"))
    assert result is not None, pattern
    assert int(result[1]) == figure


def test_pinned_memory_is_rounded_to_a_power_of_two_as_the_installed_torch_does() -> None:
    text = header("ATen/core/CachingHostAllocator.h")
    assert "return c10::llvm::PowerOf2Ceil(size);" in text
    # Whatever its size, unless the environment sets another threshold.
    config = header("c10/core/AllocatorConfig.h")
    assert "pinned_max_round_threshold_{std::numeric_limits<size_t>::max()}" in config
    assert "pinned_max_cached_size_{std::numeric_limits<size_t>::max()}" in config
    assert [pinned(size) for size in (0, 1, 3, 4096, 4097)] == [0, 1, 4, 4096, 8192]
    # A linear layer of the 14B in int8: 68 MiB take 128.
    assert pinned(5120 * 13824) == 128 * MIB


def test_sizes_are_rounded_to_512_bytes() -> None:
    assert [rounded(size) for size in (1, 512, 513, 1024)] == [512, 512, 1024, 1024]


@pytest.mark.parametrize(
    ("sizes", "reserved"),
    [
        # Small ones share segments of 2 MiB; the one that does not fit has a segment of its own.
        ([MIB, MIB], 2 * MIB),
        ([MIB, MIB - 511, 1], 4 * MIB),
        # Over 1 MiB and below 10: cut from segments of 20 MiB.
        ([MIB + 1], 20 * MIB),
        ([9 * MIB, 9 * MIB], 20 * MIB),
        ([9 * MIB, 9 * MIB, 9 * MIB], 40 * MIB),
        # From 10 MiB on: a multiple of 2 MiB.
        ([10 * MIB], 10 * MIB),
        ([11 * MIB], 12 * MIB),
        ([100 * MIB + 1], 102 * MIB),
    ],
)
def test_segments_are_as_large_as_torch_asks_for(sizes: list[int], reserved: int) -> None:
    memory = CachingAllocator(LIMIT)
    for size in sizes:
        memory.allocate(size)
    assert memory.reserved == reserved


@pytest.mark.parametrize(
    ("sizes", "reserved"),
    [([MIB, MIB], 2 * MIB), ([MIB + 1], 20 * MIB), ([11 * MIB, 9 * MIB], 20 * MIB), ([100 * MIB + 1], 120 * MIB)],
)
def test_expandable_segments_grow_by_pages(sizes: list[int], reserved: int) -> None:
    memory = CachingAllocator(LIMIT, expandable=True)
    for size in sizes:
        memory.allocate(size)
    assert memory.reserved == reserved


def test_a_rest_up_to_1_mib_stays_with_its_block_unless_segments_expand() -> None:
    fixed, grows = CachingAllocator(LIMIT), CachingAllocator(LIMIT, expandable=True)
    assert fixed.allocate(19 * MIB + 1).size == 20 * MIB
    assert grows.allocate(19 * MIB + 1).size == 19 * MIB + 512
    # With more it is cut off, and serves the next.
    assert CachingAllocator(LIMIT).allocate(9 * MIB).size == 9 * MIB


def test_the_smallest_free_block_that_is_large_enough_is_taken() -> None:
    memory = CachingAllocator(LIMIT)
    blocks = [memory.allocate(size * MIB) for size in (40, 20, 30)]
    for block in blocks:
        memory.free(block)
    assert memory.allocate(19 * MIB + 1).segment == blocks[1].segment
    assert memory.allocate(21 * MIB).segment == blocks[2].segment


def test_what_can_grow_is_kept_for_what_needs_it() -> None:
    # get_free_block: in an expandable segment the last block counts as large as it can become.
    memory = CachingAllocator(LIMIT, expandable=True)
    large, fence, _ = (memory.allocate(size * MIB) for size in (30, 3, 2))
    memory.free(large)
    # 5 MiB at the end are free, and 30 at the beginning.
    assert memory.allocate(4 * MIB).offset == 0
    assert fence.offset == 30 * MIB


def test_a_freed_block_joins_its_free_neighbours() -> None:
    memory = CachingAllocator(LIMIT)
    first, second, third = (memory.allocate(6 * MIB) for _ in range(3))
    memory.free(first)
    memory.free(third)
    memory.free(second)
    assert memory.allocate(20 * MIB).size == 20 * MIB
    assert memory.reserved == 20 * MIB


def test_what_lies_between_live_blocks_is_lost_until_segments_expand() -> None:
    def held(*, expandable: bool) -> int:
        memory = CachingAllocator(LIMIT, expandable=expandable)
        # Each next one is larger than all holes before it, as where a resolution grows from job to job.
        before = memory.allocate(12 * MIB)
        for size in range(14, 40, 2):
            block = memory.allocate(size * MIB)
            memory.free(before)
            before = block
        return memory.reserved

    assert held(expandable=False) == sum(range(12, 40, 2)) * MIB
    assert held(expandable=True) == 100 * MIB


def test_streams_do_not_share_free_blocks() -> None:
    memory = CachingAllocator(LIMIT)
    memory.free(memory.allocate(30 * MIB, stream=1))
    memory.allocate(30 * MIB, stream=2)
    assert memory.reserved == 60 * MIB
    memory.allocate(30 * MIB, stream=1)
    assert memory.reserved == 60 * MIB


def test_a_full_card_gives_back_what_is_free_before_it_is_too_small() -> None:
    memory = CachingAllocator(50 * MIB)
    memory.free(memory.allocate(30 * MIB))
    memory.allocate(40 * MIB)
    assert (memory.reserved, memory.missing) == (40 * MIB, 0)
    memory.allocate(16 * MIB)
    assert memory.missing == 6 * MIB


def test_pages_that_were_given_back_are_filled_again_from_the_lowest_on() -> None:
    memory = CachingAllocator(LIMIT, expandable=True)
    first, fence = memory.allocate(40 * MIB), memory.allocate(20 * MIB)
    memory.free(first)
    memory.empty_cache()
    assert memory.reserved == 20 * MIB
    again = memory.allocate(30 * MIB)
    assert (again.offset, memory.reserved) == (0, 60 * MIB)
    # Not into a hole that is too small.
    assert memory.allocate(21 * MIB).offset == fence.offset + fence.size


def walk(memory: CachingAllocator, trace: list[tuple[int, int, int]]) -> list[Block]:
    """Allocate each size, then let go as many of the oldest; return what is live. Nothing may overlap meanwhile."""
    live: list[Block] = []
    for size, gone, stream in trace:
        live.append(memory.allocate(size, stream))
        assert live[-1].size >= size
        for _ in range(min(gone, len(live))):
            memory.free(live.pop(len(live) // 2))
        places = sorted((block.segment, block.offset, block.size) for block in live)
        for (one, begin, length), (other, after, _) in itertools.pairwise(places):
            assert one != other or begin + length <= after
        assert memory.allocated == sum(block.size for block in live)
        assert memory.allocated <= memory.reserved <= memory.most_reserved
        assert memory.missing == max(0, memory.most_reserved - memory.limit)
    return live


def pages(block: Block) -> set[tuple[int, int]]:
    page = block.pool.page
    return {(block.segment, index) for index in range(block.offset // page, -(-(block.offset + block.size) // page))}


@settings(max_examples=60)
@given(TRACES, st.booleans(), st.sampled_from([LIMIT, 64 * MIB]))
def test_blocks_never_overlap_and_all_goes_back_when_nothing_is_live(
    trace: list[tuple[int, int, int]], expandable: bool, limit: int
) -> None:
    memory = CachingAllocator(limit, expandable=expandable)
    live = walk(memory, trace)
    memory.empty_cache()
    if expandable:
        # Nothing but pages with something live.
        held = {page: block.pool.page for block in live for page in pages(block)}
        assert memory.reserved == sum(held.values())
    for block in live:
        memory.free(block)
    memory.empty_cache()
    assert (memory.allocated, memory.reserved) == (0, 0)


@settings(max_examples=60)
@given(st.lists(SIZES, min_size=1, max_size=30), st.booleans())
def test_what_was_held_once_serves_the_same_again(sizes: list[int], expandable: bool) -> None:
    memory = CachingAllocator(LIMIT, expandable=expandable)
    blocks = [memory.allocate(size) for size in sizes]
    held = memory.reserved
    for block in blocks:
        memory.free(block)
    if expandable:
        # Free neighbours are one, so the order does not matter either.
        sizes.reverse()
    for size in sizes:
        memory.allocate(size)
    assert memory.reserved == held


@settings(max_examples=60)
@given(st.lists(SIZES, min_size=1, max_size=30))
def test_growing_alone_an_expandable_segment_loses_less_than_a_page_a_pool(sizes: list[int]) -> None:
    memory = CachingAllocator(LIMIT, expandable=True)
    for size in sizes:
        memory.allocate(size)
    lost = memory.reserved - sum(map(rounded, sizes))
    assert 0 <= lost < allocator.SMALL_SEGMENT + allocator.LARGE_SEGMENT
