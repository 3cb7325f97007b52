"""Bytes that are live on the pretended card, and the work of a forward, as torch itself counts them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest
import torch
from allocations import allocated
from engine_code import called_from

from engine.planning.gpus import cards
from engine.rehearsal.card import _cuda, pretended
from engine.rehearsal.ledger import Ledger

CARD = cards()[0]


# --- bytes and work ---------------------------------------------------------------------------------------------------


def test_storages_count_once_and_go_at_once(ledger: Ledger) -> None:
    tensor = torch.ones(100, device="cuda")
    # 400 bytes take 512.
    assert ledger.live["cuda"] == 512
    views = [tensor.view(10, 10), tensor[5:], tensor.detach(), tensor.t()]
    tensor.add_(1).mul_(2)
    assert ledger.live["cuda"] == 512
    assert ledger.now.peak == 512
    other = tensor + 1
    del tensor
    assert ledger.live["cuda"] == 1024
    del views
    assert ledger.live["cuda"] == 512
    del other
    assert (ledger.live["cuda"], ledger.now.peak) == (0, 1024)


def test_the_peak_is_named_by_its_place(ledger: Ledger) -> None:
    called_from(
        "engine/stages/made_up.py", "small = torch.ones(4, device='cuda')\nlarge = small.repeat(9)", torch=torch
    )
    assert ledger.now.peak_where == "engine/stages/made_up.py:2 <module>"


def test_large_tensors_that_are_left_are_named_by_their_place(ledger: Ledger) -> None:
    result = called_from("engine/stages/made_up.py", "found = torch.ones(2**20, device='cuda')", torch=torch)
    ledger.end()
    assert ledger.now.left == {"engine/stages/made_up.py:1 <module>": result.nbytes}


def small_forward(dtype: torch.dtype, speakers: int, ffn_dim: int, *, device: str = "cpu") -> Callable[[], Any]:
    """Return a forward of a small network, of weights and inputs that are there."""
    from engine.bench.transformer import build_inputs, build_model

    model = build_model(256, ffn_dim, 4, 2, dtype, torch.Generator().manual_seed(0)).requires_grad_(False)
    latents, time, conditions = build_inputs(model, (3, 16, 16), speakers, torch.Generator().manual_seed(0))
    model.to(device)
    there = [moved(part, device) for part in (latents, time, conditions)]
    return lambda: model(*there[:2], conditions=there[2])


def moved(value: Any, device: str) -> Any:
    """Return a tensor on a device, or what holds tensors."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, tuple):
        parts = [moved(part, device) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{one.name: moved(getattr(value, one.name), device) for one in fields(value)})
    return value


@pytest.mark.parametrize(
    ("dtype", "speakers", "ffn_dim"), [(torch.float32, 1, 688), (torch.bfloat16, 1, 688), (torch.bfloat16, 2, 256)]
)
def test_live_bytes_of_a_forward_are_those_of_torchs_allocator(dtype: torch.dtype, speakers: int, ffn_dim: int) -> None:
    real = small_forward(dtype, speakers, ffn_dim)
    with torch.no_grad():
        real()
    measured = allocated(real)
    with pretended(CARD) as ledger:
        forward = small_forward(dtype, speakers, ffn_dim)
        forward()
        before = ledger.live["cpu"]
        ledger.begin()
        forward()
        counted = ledger.now.host_peak - before
    # The CPU's kernels take buffers for themselves, where the peak is in attention.
    assert counted == pytest.approx(measured, rel=0.001 if speakers == 1 else 0.01)


def test_operations_of_a_forward_are_those_that_torch_counts() -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    real = small_forward(torch.bfloat16, 2, 256)
    # As sums of products: of the CPU's own kernel torch knows no count.
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        real()
    with pretended(CARD) as ledger:
        forward = small_forward(torch.bfloat16, 2, 256, device="cuda")
        ledger.begin()
        forward()
    assert ledger.now.flops.total() == counter.get_total_flops()
    # Who speaks where is found in float32, for which there is no flash attention.
    assert {(kernel, dtype) for kernel, _, dtype in ledger.now.attention} == {
        ("flash", "bfloat16"),
        ("efficient", "float32"),
    }
    assert ledger.now.attention.total() == sum(
        number for name, number in ledger.now.launches.items() if name.startswith("_scaled_dot_product")
    )


def test_bytes_that_an_operation_touches_are_those_of_its_tensors(ledger: Ledger) -> None:
    row = torch.ones(1, 1000, device="cuda")
    ledger.begin()
    # A row that is read again and again is read once.
    row.expand(50, 1000) + torch.ones(50, 1000, device="cuda")
    assert ledger.now.moved == {"ones": 200_000, "add": 4_000 + 2 * 200_000}
    assert ledger.now.launches == {"ones": 1, "add": 1}


def test_memory_alone_is_no_kernel(ledger: Ledger) -> None:
    torch.empty_like(torch.empty(4, device="cuda"))
    assert not ledger.now.launches


def test_each_name_in_torch_cuda_has_a_function_of_its_own() -> None:
    # torch._dynamo is imported by whom it pleases, and refuses one function under two names.
    with pretended(CARD) as ledger:
        names = _cuda(ledger, CARD)
        assert len({id(getattr(torch.cuda, name)) for name in names}) == len(names)
