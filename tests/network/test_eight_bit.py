"""Products in 8 bits: near the plain ones, row by row, and the same from the kernels of a GPU."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from engine.loading.quanto import quantise
from engine.network import eight_bit
from engine.network.eight_bit import MOST, linear, quantise_rows

FP8 = torch.float8_e4m3fn
#: Relative error of a product of normal noise; measured 0.9 % and 3.7 %.
BOUNDS = {torch.int8: 0.015, FP8: 0.05}


def noise(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape) + shape[-1])).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", MOST)
@pytest.mark.parametrize("biased", [False, True])
def test_a_product_is_near_the_plain_one(kind: torch.dtype, dtype: torch.dtype, biased: bool) -> None:
    x, weight = noise(2, 20, 96, dtype=dtype), noise(48, 96)
    bias = noise(48, dtype=dtype) if biased else None
    stored = quantise(weight, kind)

    given = linear(x, stored.data, stored.scale, bias)

    expected = x.float() @ weight.T + (0 if bias is None else bias.float())
    assert given.shape == (2, 20, 48)
    assert given.dtype == dtype
    assert 0 < float((given.float() - expected).norm() / expected.norm()) < BOUNDS[kind]


@pytest.mark.parametrize("kind", MOST)
def test_rows_do_not_depend_on_each_other(kind: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    x, stored = noise(40, 96), quantise(noise(48, 96), kind)
    whole = linear(x, stored.data, stored.scale, None)
    loud = x.clone()
    loud[0] *= 1000

    assert torch.equal(linear(loud, stored.data, stored.scale, None)[1:], whole[1:])
    monkeypatch.setattr(eight_bit, "ROWS", 16)
    assert torch.equal(linear(x, stored.data, stored.scale, None), whole)


@pytest.mark.parametrize("kind", MOST)
def test_the_largest_value_of_a_row_is_the_largest_number(kind: torch.dtype) -> None:
    rows = noise(5, 30)
    rows[2] = 0

    values, scales = quantise_rows(rows, kind)

    largest = values.float().abs().amax(dim=1)
    assert largest.tolist() == [MOST[kind]] * 2 + [0] + [MOST[kind]] * 2
    # Half a step of the integers; 3 bits after the leading one of the floats.
    steps = scales / 2 if kind == torch.int8 else (rows.abs() / 16).clamp_min(1e-3)
    assert bool(((values.float() * scales - rows).abs() <= steps * 1.001).all())


@pytest.mark.parametrize("kind", MOST)
@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(kind: torch.dtype, wrong: float) -> None:
    x, stored = noise(3, 32), quantise(noise(16, 32), kind)
    x[1, 4] = wrong

    given = linear(x, stored.data, stored.scale, None)

    assert not given[1].isfinite().any()
    assert given[[0, 2]].isfinite().all()


def test_kernels_of_a_gpu_compute_the_same() -> None:
    """By Triton's interpreter, which reads its variable when the kernels are made."""
    pytest.importorskip("triton")
    program = """
import torch
from engine.network import eight_bit, eight_bit_kernels as kernels
generator = torch.Generator().manual_seed(0)
for dtype in (torch.float32, torch.bfloat16):
    rows = torch.randn(9, 100, generator=generator).to(dtype)
    rows[3] = 0
    for kind, most in eight_bit.MOST.items():
        values, scales = kernels.quantise(rows, kind, most, 1e-12)
        expected, expected_scales = eight_bit.quantise_rows(rows, kind)
        assert torch.equal(scales, expected_scales)
        off, expected = (values.float() - expected.float()).abs(), expected.float().abs()
        if kind == torch.int8:
            assert not off.any()
            continue
        # The interpreter rounds ties up, and loses the carry to the next power of two (its _convert_float); a GPU's own
        # instruction does neither.
        carried = expected.log2() % 1 == 0
        assert bool((carried | (off <= (expected / 8).clamp_min(2**-9))).all())
        assert float((off > 0).float().mean()) < 0.1
    sums = torch.randint(-(10**6), 10**6, (9, 1500), dtype=torch.int32)
    columns, bias = torch.rand(1500, 1), torch.randn(1500).to(dtype)
    for added in (bias, None):
        out = torch.empty(9, 1500, dtype=dtype)
        kernels.rescale(sums, scales, columns, added, out)
        plain = sums * scales * columns.T + (0 if added is None else added.float())
        torch.testing.assert_close(out, plain.to(dtype))
"""
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
