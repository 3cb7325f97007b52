"""Products in 8 bits on the pretended card: counted by their format, and refused as CUDA's kernels refuse them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from engine.network.eight_bit import linear
from engine.planning.gpus import cards
from engine.rehearsal.card import pretended
from engine.rehearsal.ledger import Ledger

FP8 = torch.float8_e4m3fn


def on_card(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="cuda")


def layer(dtype: torch.dtype, outputs: int = 48, inputs: int = 64) -> tuple[Tensor, Tensor, Tensor]:
    return on_card(outputs, inputs, dtype=dtype), on_card(outputs, 1, dtype=torch.float32), on_card(outputs)


@pytest.mark.parametrize(
    ("dtype", "name", "moved"),
    [
        # Activations in 16 bits are read, and written in 8 with their scales; the product reads both and its scales.
        (FP8, "_scaled_mm", 2 * 100 * 64 + 100 * 64 + 4 * 100 + 100 * 64 + 48 * 64 + 4 * (100 + 48) + 2 * 48 + 9600),
        # Sums in 32 bits are written and read.
        (torch.int8, "_int_mm", 2 * 6400 + 6400 + 400 + 6400 + 48 * 64 + 2 * 19200 + 4 * (100 + 48) + 2 * 48 + 9600),
    ],
)
def test_products_count_by_the_format_of_their_inputs(
    dtype: torch.dtype, name: str, moved: int, ledger: Ledger
) -> None:
    x, weight = on_card(1, 100, 64), layer(dtype)
    counts = ledger.begin()
    with ledger.forward():
        out = linear(x, *weight)
        torch.nn.functional.linear(x, on_card(48, 64), on_card(48))

    assert (out.shape, out.dtype) == ((1, 100, 48), torch.bfloat16)
    work = 2 * 100 * 64 * 48
    assert counts.flops == {(name, str(dtype).removeprefix("torch.")): work, ("addmm", "bfloat16"): work}
    assert (ledger.forwards[0].linear, ledger.forwards[0].linear_8_bits) == (2 * work, work)
    assert counts.moved.total() - counts.moved["addmm"] == moved
    assert not counts.waits


@pytest.mark.parametrize("rows", [1, 16, 17, 8200])
def test_any_number_of_rows_is_multiplied(rows: int, ledger: Ledger) -> None:
    for dtype in (torch.int8, FP8):
        assert linear(on_card(rows, 64), *layer(dtype)).shape == (rows, 48)


@pytest.mark.parametrize(
    ("rows", "inputs", "outputs", "told"),
    [
        (16, 64, 48, r"self\.size\(0\) needs to be greater than 16, but got 16"),
        (17, 60, 48, r"self\.size\(1\) needs to be greater than 0 and a multiple of 8, but got 60"),
        (17, 64, 44, r"mat2\.size\(1\) needs to be greater than 0 and a multiple of 8, but got 44"),
    ],
)
def test_int8_has_the_sizes_that_cuda_needs(rows: int, inputs: int, outputs: int, told: str, ledger: Ledger) -> None:
    first, second = (on_card(count, inputs, dtype=torch.int8) for count in (rows, outputs))
    with pytest.raises(RuntimeError, match=told):
        torch._int_mm(first, second.t())


def test_float8_needs_16_bits_out_and_multiples_of_16(ledger: Ledger) -> None:
    with pytest.raises(RuntimeError, match="divisible by 16"):
        linear(on_card(20, 40), *layer(FP8, inputs=40))
    with pytest.raises(RuntimeError, match="Only bf16"):
        linear(on_card(20, 64, dtype=torch.float32), *layer(FP8))


def test_float8_needs_a_card_that_has_it() -> None:
    with pretended(replace(cards()[0], capability=(8, 6))), pytest.raises(RuntimeError, match=r"capability >= 9\.0"):
        linear(on_card(20, 64), *layer(FP8))
