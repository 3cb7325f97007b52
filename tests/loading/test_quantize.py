"""int8 on the fly."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from steering import make_quantiser
from torch import Tensor

from engine.errors import MissingExtra
from engine.loading.quantize import is_block_linear
from engine.network.precision import cast_model

# Relative error of the output against the unquantised model in the same dtype; measured 1.06 % and 1.15 %.
BOUND = 0.02


def quantize_int8(model: Any) -> None:
    quantiser = make_quantiser("int8")
    assert quantiser is not None
    quantiser.apply(model, is_block_linear)


def forward(model: Any, recordings: Any) -> Tensor:
    sample: Tensor = recordings.replay(model, recordings.tensors("forward_d_grid"))
    return sample


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_stays_near_the_dense_model(home_recordings: Any, dtype: torch.dtype) -> None:
    model = cast_model(home_recordings.model("model_A"), dtype)
    dense = forward(model, home_recordings)

    quantize_int8(model)
    error = (forward(model, home_recordings) - dense).norm() / dense.norm()

    assert sum(hasattr(weight.data, "qdata") for weight in model.parameters()) == 2 * 15
    assert 0 < error < BOUND


def test_only_linear_layers_of_blocks_are_quantised(home_recordings: Any) -> None:
    model = home_recordings.model("model_A")
    quantize_int8(model)

    plain = {name for name, parameter in model.named_parameters() if type(parameter.data) is Tensor}

    assert "blocks.0.audio_attn.to_q.weight" not in plain
    assert {"audio_proj.proj1.weight", "proj_out.weight", "condition_embedder.time_proj.weight"} <= plain
    assert "blocks.0.norm_audio.weight" in plain


def test_absent_torchao_is_named(home_recordings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)

    with pytest.raises(MissingExtra, match="torchao"):
        quantize_int8(home_recordings.model("model_A"))
