"""Norms and rotations by our own Triton kernels, run by Triton's interpreter, against torch's operators."""

from __future__ import annotations

import itertools
import os
from typing import Any

import pytest
import torch

from engine.errors import ConfigError
from engine.network import fused
from engine.network.embeddings import RMSNorm, rotary_table, rotate

DTYPES = (torch.float32, torch.bfloat16)


@pytest.fixture
def interpreted() -> None:
    """Skip where kernels cannot run on the CPU: Triton reads the variable when it is imported, which torch may do."""
    pytest.importorskip("triton", reason="Triton is part of CUDA builds of torch")
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("run with TRITON_INTERPRET=1, in a process of its own")


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(("dtype", "wanted"), [*itertools.product(DTYPES, DTYPES)])
@torch.no_grad()
def test_a_kernel_gives_what_torchs_operators_give(dtype: torch.dtype, wanted: torch.dtype) -> None:
    # Widths that are no power of two, as the network's 5120.
    x, weight, bias = (3 * torch.randn(2, 10, 24) + 1).to(dtype), torch.randn(24), torch.randn(24)
    norm, rotary = RMSNorm(24, 1e-6), rotary_table(torch.randn(10, 4))
    torch.nn.init.normal_(norm.weight)

    def turned(weight: torch.Tensor | None, turns: torch.Tensor | None) -> torch.Tensor:
        return fused.rms_rotate(x, weight, turns, 3, 1e-6, wanted).view(2, 10, 3, 8)

    torch.testing.assert_close(
        fused.layer_norm(x, weight, bias, 1e-6, wanted, fused=True),
        fused.layer_norm(x, weight, bias, 1e-6, wanted, fused=False),
    )
    torch.testing.assert_close(turned(norm.weight, rotary.turns), norm(x, 3, rotary, wanted))
    torch.testing.assert_close(turned(norm.weight, None), norm(x, 3, None, wanted))
    torch.testing.assert_close(turned(None, rotary.turns), rotate(x.clone().view(2, 10, 3, 8), rotary, wanted))


@pytest.mark.usefixtures("interpreted")
def test_a_network_with_our_kernels_answers_as_without(tiny: Any) -> None:
    model = tiny.model()
    with torch.no_grad():
        expected = tiny.run(model, 2)
        fused.set_fused(model, True)
        answer = tiny.run(model, 2)

    torch.testing.assert_close(answer, expected, atol=1e-4, rtol=1e-4)


def test_gradients_use_torchs_operators() -> None:
    x, weight = torch.randn(1, 4, 8, requires_grad=True), torch.ones(8)

    with torch.enable_grad():
        # A kernel has no gradient, and on a CPU it cannot run.
        fused.layer_norm(x, weight, weight, 1e-6, torch.float32, fused=True).square().sum().backward()  # type: ignore[no-untyped-call]

    assert x.grad is not None


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_cpus_gelu_is_torchs(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "_AT_ONCE", 100)
    x = (4 * torch.randn(1, 20, 33)).to(dtype)
    expected = torch.nn.functional.gelu(x, approximate="tanh")

    with torch.no_grad():
        torch.testing.assert_close(fused.gelu(x.clone()), expected)


def test_a_bfloat16_stream_is_near_a_float32_one(tiny: Any) -> None:
    model = tiny.model()
    with torch.no_grad():
        exact = tiny.run(model, 2)
        model.stream_dtype = torch.bfloat16
        rounded = tiny.run(model, 2)

    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, exact)
    assert (rounded - exact).norm() / exact.norm() < 0.02


def test_triton_kernels_are_refused_on_a_cpu() -> None:
    from engine.assembly.compose import compose
    from engine.assembly.kernels import uses_triton

    with pytest.raises(ConfigError, match="need CUDA"):
        uses_triton(compose(["kernels=triton"]), "cpu")
    assert not uses_triton(compose([]), "cpu")
    assert not uses_triton(compose(["kernels=eager"]), "cuda")
