"""The map between the reference's tensor names and ours."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from engine.errors import SourceError
from engine.loading.key_map import to_engine, to_engine_config, to_reference
from engine.rehearsal import published
from plugins.families.multitalk.transformer import MultiTalkTransformer3DModel


def test_recorded_model_maps_there_and_back(home_recordings: Any) -> None:
    names = list(home_recordings.tensors("model_A"))
    model = MultiTalkTransformer3DModel(**home_recordings.config("model_A"))

    ours = [to_engine(name) for name in names]

    assert len(names) == 113
    assert set(ours) == set(model.state_dict())
    assert [to_reference(name) for name in ours] == names


def test_full_model_has_exactly_the_published_tensors() -> None:
    with torch.device("meta"):
        model = MultiTalkTransformer3DModel()
    ours = {to_reference(name): tuple(tensor.shape) for name, tensor in model.state_dict().items()}

    base, audio = published.wan(), published.multitalk()

    assert (len(base), len(audio)) == (1303, 330)
    assert ours == base | audio
    assert sum(torch.Size(shape).numel() for shape in base.values()) == 16_394_878_784
    assert sum(torch.Size(shape).numel() for shape in audio.values()) == 2_487_168_000


@pytest.mark.parametrize(
    "name", ["blocks.0.norm1.weight", "blocks.x.norm3.weight", "freqs", "blocks.0.self_attn.q", "head.weight", ""]
)
def test_unknown_name_is_an_error(name: str) -> None:
    with pytest.raises(SourceError, match="no tensor"):
        to_engine(name)


def test_names_of_one_side_are_refused_by_the_other() -> None:
    with pytest.raises(SourceError):
        to_engine("blocks.0.attn1.to_q.weight")
    with pytest.raises(SourceError):
        to_reference("blocks.0.self_attn.q.weight")


def test_reference_config_gives_our_arguments() -> None:
    config = {"_class_name": "WanModel", "model_type": "i2v", "dim": 5120, "num_heads": 40, "in_dim": 36, "eps": 1e-6}

    ours = to_engine_config(config)

    assert ours == {"num_attention_heads": 40, "attention_head_dim": 128, "in_channels": 36, "eps": 1e-6}


def test_width_that_does_not_divide_is_an_error() -> None:
    with pytest.raises(SourceError, match="heads"):
        to_engine_config({"dim": 100, "num_heads": 3})
