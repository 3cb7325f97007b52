"""Which attention kernel is taken on which card, by the rules of torch's sdp_utils.cpp, and what comes out of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from engine.planning.gpus import cards
from engine.rehearsal.attention import Call, kernel_order, pick_kernel
from engine.rehearsal.card import pretended

ADA, AMPERE, HOPPER, BLACKWELL, RTX_50 = (8, 9), (8, 0), (9, 0), (10, 0), (12, 0)
#: Turing and Pascal, which no known card is.
TURING, PASCAL = (7, 5), (6, 1)
BF16, F16, F32, F64 = torch.bfloat16, torch.float16, torch.float32, torch.float64


def call(
    dtype: torch.dtype = BF16,
    width: int = 128,
    *,
    value: int | None = None,
    keys: int = 24,
    mask: torch.dtype | None = None,
    causal: bool = False,
    order: Callable[[Tensor], Tensor] = lambda tensor: tensor,
) -> Call:
    """Return tensors of 3 heads and 16 queries; `order` gives them other strides."""
    query, key = (torch.zeros(1, 3, length, width, dtype=dtype) for length in (16, keys))
    values = torch.zeros(1, 3, keys, value or width, dtype=dtype)
    masked = None if mask is None else torch.zeros(1, 1, 16, keys, dtype=mask)
    return Call(order(query), order(key), order(values), masked, causal)


def turned(tensor: Tensor) -> Tensor:
    """Return the same, its rows not in one piece."""
    return tensor.transpose(2, 3).contiguous().transpose(2, 3)


FLAT = Call(call().query[0], call().key[0], call().value[0])
CASES: list[tuple[str, Call, tuple[int, int], str]] = [
    # check_prefer_cudnn_attention (CUDA 13, cuDNN over 9.15): first where the major version is 9 or 10.
    ("the network on Ada", call(), ADA, "flash"),
    ("the network on Ampere", call(), AMPERE, "flash"),
    ("the network on Hopper", call(), HOPPER, "cudnn"),
    ("the network on Blackwell", call(), BLACKWELL, "cudnn"),
    ("the network on a Blackwell of games", call(), RTX_50, "flash"),
    ("in half precision", call(F16), ADA, "flash"),
    # check_dtypes_low_precision: float32 is for the efficient kernel alone.
    ("float32", call(F32), ADA, "efficient"),
    ("float32 on Hopper", call(F32), HOPPER, "efficient"),
    ("float64", call(F64), HOPPER, "math"),
    # check_for_attn_mask: flash takes none.
    ("a mask", call(mask=torch.bool), ADA, "efficient"),
    ("a mask on Hopper", call(mask=BF16), HOPPER, "cudnn"),
    # check_head_dim_size_flash, check_cudnn_tensor_shapes, check_head_dim_size_mem_efficient.
    ("heads of 256", call(width=256), ADA, "flash"),
    ("heads of 256 on Hopper", call(width=256), HOPPER, "flash"),
    ("heads of 264", call(width=264), ADA, "efficient"),
    ("heads of 12", call(width=12), ADA, "flash"),
    ("heads of 12 on Hopper", call(width=12), HOPPER, "flash"),
    ("heads of 12 and a mask", call(width=12, mask=BF16), HOPPER, "math"),
    ("heads of 12 in float32", call(F32, 12), ADA, "efficient"),
    ("heads of 10 in float32", call(F32, 10), ADA, "math"),
    ("values of another width", call(width=64, value=128), ADA, "efficient"),
    ("values of another width on Hopper", call(width=64, value=128), HOPPER, "cudnn"),
    ("heads of 192 and 128 on Hopper", call(width=192, value=128), HOPPER, "cudnn"),
    ("heads of 192 and 128 on Ada", call(width=192, value=128), ADA, "efficient"),
    # check_cudnn_tensor_shapes: not for a single key.
    ("a single key on Hopper", call(keys=1), HOPPER, "flash"),
    # check_flash_causal_non_square_seqlens.
    ("causal", call(keys=16, causal=True), ADA, "flash"),
    ("causal and not square", call(causal=True), ADA, "efficient"),
    # check_last_dim_stride_equals_1_dense.
    ("rows in pieces", call(order=turned), ADA, "math"),
    ("rows in pieces on Hopper", call(order=turned), HOPPER, "math"),
    # check_batch_size_and_num_heads_dense, check_tensor_shapes, check_nonzero_sequence_lengths_dense.
    ("keys of one head", call()._replace(key=torch.zeros(1, 1, 24, 128, dtype=BF16)), ADA, "math"),
    ("three dimensions", FLAT, ADA, "math"),
    ("no keys", call(keys=0), ADA, "math"),
    # check_flash_attention_hardware_support, check_mem_efficient_hardware_support and dtypes below 8.0.
    ("bfloat16 on Turing", call(), TURING, "math"),
    ("half precision on Turing", call(F16), TURING, "efficient"),
    ("float32 on Pascal", call(F32, 10), PASCAL, "efficient"),
]


@pytest.mark.parametrize(
    ("given", "capability", "kernel"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_the_kernel_is_the_one_that_torch_takes(given: Call, capability: tuple[int, int], kernel: str) -> None:
    assert pick_kernel(given, capability) == kernel


def test_heads_that_are_looked_at_by_many_may_be_one_that_is_repeated() -> None:
    # engine.network.attention.class_scores: values without a stride over heads.
    given = call()
    assert pick_kernel(given._replace(value=given.value[:, :1].expand(given.value.shape)), ADA) == "flash"


def test_the_order_without_cudnn_is_that_of_the_installed_torch() -> None:
    text = (Path(torch.__file__).parent / "include" / "ATen" / "Context.h").read_text("utf-8")
    result = re.search(r"sdp_priority_order = \{([^}]*)\}", text)
    assert result is not None
    order = re.findall(r"SDPBackend::(\w+)", result[1])
    names = [name.removesuffix("_attention") for name in order]
    assert tuple(name for name in names if name != "overrideable") == kernel_order(ADA)
    assert sorted(kernel_order(HOPPER)) == sorted(kernel_order(ADA))


SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "odd heads": {"width": 12},
    "values of another width": {"width": 64, "value": 32},
    "mask": {"mask": torch.bool},
    "mask with odd rows": {"mask": BF16, "keys": 21},
    "float32": {"dtype": F32, "width": 20},
    "causal": {"keys": 16, "causal": True},
    "turned": {"order": turned},
}


@pytest.mark.parametrize(
    "card", [one for one in cards() if one.name.startswith(("L4", "H100"))], ids=lambda one: one.name
)
@pytest.mark.parametrize("name", SHAPES)
def test_what_comes_out_has_the_shape_and_dtype_of_the_real_result(name: str, card: Any) -> None:
    given = call(**SHAPES[name])
    real = F.scaled_dot_product_attention(*given[:3], attn_mask=given.mask, is_causal=given.causal)
    with pretended(card) as ledger:
        there = [None if part is None else torch.empty_like(part, device="cuda") for part in call(**SHAPES[name])[:4]]
        query, key, value, mask = there
        assert query is not None
        assert key is not None
        assert value is not None
        made = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=given.causal)
        assert (made.shape, made.dtype, made.device.type) == (real.shape, real.dtype, "cuda")
        ((kernel, shapes, dtype),) = ledger.now.attention
        assert kernel == pick_kernel(given, card.capability)
        assert shapes == f"{tuple(query.shape)} x {tuple(key.shape)}"
        assert dtype == str(query.dtype).removeprefix("torch.")


def test_on_the_host_nothing_is_counted() -> None:
    with pretended(cards()[0]) as ledger:
        given = call()
        assert F.scaled_dot_product_attention(*given[:3]).shape == given.query.shape
        assert not ledger.now.attention


def test_fused_attention_holds_no_scores_and_sums_of_products_do() -> None:
    def peak(order: Callable[[Tensor], Tensor]) -> int:
        with pretended(cards()[0]) as ledger:
            query, key, value = (order(torch.empty(1, 1, 1024, 64, dtype=BF16, device="cuda")) for _ in range(3))
            ledger.begin()
            F.scaled_dot_product_attention(query, key, value)
            return ledger.now.peak - 3 * query.nbytes

    scores = 1024 * 1024 * 4
    # The result, a logarithm a row, and two numbers of the random generator, which take 512 bytes each.
    assert peak(lambda tensor: tensor) == 1024 * (64 * 2 + 4) + 2 * 512
    assert peak(turned) > scores
