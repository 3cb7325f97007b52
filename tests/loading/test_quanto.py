"""optimum-quanto checkpoints, read without optimum-quanto (the recorded forward stands in test_golden.py)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from engine.errors import SourceError
from engine.loading.quanto import dequantize

INT8 = {"layer": {"weights": "qint8", "activations": "none"}}


def layer(data: Tensor, **other: Tensor) -> dict[str, Tensor]:
    scale = torch.tensor([[0.5], [2.0]])
    return {"layer.weight._data": data, "layer.weight._scale": scale, "layer.bias": torch.ones(2)} | other


@pytest.mark.parametrize(("kind", "dtype"), [("qint8", torch.int8), ("qfloat8_e4m3fn", torch.float8_e4m3fn)])
def test_weight_is_data_times_scale(kind: str, dtype: torch.dtype) -> None:
    state = layer(
        torch.tensor([[1, -2], [3, 4]]).to(dtype), **{"layer.input_scale": torch.ones(()), "norm.weight": torch.ones(3)}
    )

    dense = dequantize(state, {"layer": {"weights": kind}}, torch.float32)

    assert sorted(dense) == ["layer.bias", "layer.weight", "norm.weight"]
    assert dense["layer.weight"].tolist() == [[0.5, -1.0], [6.0, 8.0]]


def test_dense_tensors_take_the_dtype_asked_for() -> None:
    dense = dequantize(layer(torch.ones(2, 2, dtype=torch.int8)), INT8, torch.bfloat16)

    assert {tensor.dtype for tensor in dense.values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("state", "quantised", "told"),
    [
        ({"layer.weight._data": torch.ones(2, 2, dtype=torch.int8)}, INT8, "lacks weights of 1"),
        ({}, INT8, "lacks weights of 1"),
        (layer(torch.ones(2, 2, dtype=torch.int8)), {}, "not in the map"),
        (layer(torch.ones(2, 2)), INT8, "the map says qint8"),
        (layer(torch.ones(2, 2, dtype=torch.int8)), {"layer": {"weights": "qint4"}}, "qint4"),
        ({"layer.weight": torch.ones(2, 2)}, INT8, "is dense"),
    ],
)
def test_map_and_tensors_that_disagree_are_an_error(
    state: dict[str, Tensor], quantised: dict[str, dict[str, str]], told: str
) -> None:
    with pytest.raises(SourceError, match=told):
        dequantize(state, quantised, torch.float32)
