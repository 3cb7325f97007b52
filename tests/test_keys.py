"""The map between the reference's tensor names and ours."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from engine.errors import SourceError
from engine.multitalk.keys import to_engine, to_engine_config, to_reference
from engine.multitalk.transformer import MultiTalkTransformer3DModel

# Tensor names and shapes of the 14B checkpoints, without the leading "blocks.i." of the second and fourth group.
D, FFN = 5120, 13824
LINEARS = {
    "text_embedding.0": (D, 4096),
    "text_embedding.2": (D, D),
    "time_embedding.0": (D, 256),
    "time_embedding.2": (D, D),
    "time_projection.1": (6 * D, D),
    "img_emb.proj.1": (1280, 1280),
    "img_emb.proj.3": (D, 1280),
    "head.head": (64, D),
}
BLOCK_LINEARS = {f"self_attn.{name}": (D, D) for name in "qkvo"} | {
    f"cross_attn.{name}": (D, D) for name in ("q", "k", "v", "o", "k_img", "v_img")
}
BLOCK_LINEARS |= {"ffn.0": (FFN, D), "ffn.2": (D, FFN)}
AUDIO_LINEARS = {
    "audio_proj.proj1": (512, 46080),
    "audio_proj.proj1_vf": (512, 73728),
    "audio_proj.proj2": (512, 512),
    "audio_proj.proj3": (24576, 512),
}
AUDIO_BLOCK_LINEARS = {
    "audio_cross_attn.q_linear": (D, D),
    "audio_cross_attn.kv_linear": (2 * D, 768),
    "audio_cross_attn.proj": (D, D),
}


def linears(modules: dict[str, tuple[int, int]]) -> dict[str, tuple[int, ...]]:
    return {
        f"{module}.{leaf}": shape if leaf == "weight" else shape[:1]
        for module, shape in modules.items()
        for leaf in ("weight", "bias")
    }


def norms(sizes: dict[str, int]) -> dict[str, tuple[int, ...]]:
    return {f"{name}.{leaf}": (size,) for name, size in sizes.items() for leaf in ("weight", "bias")}


def in_blocks(shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {f"blocks.{index}.{name}": shape for index in range(40) for name, shape in shapes.items()}


def wan_14b() -> dict[str, tuple[int, ...]]:
    gains = [f"self_attn.norm_{x}" for x in "qk"] + [f"cross_attn.norm_{x}" for x in ("q", "k", "k_img")]
    block = linears(BLOCK_LINEARS) | norms({"norm3": D}) | {f"{name}.weight": (D,) for name in gains}
    root = {"patch_embedding.weight": (D, 36, 1, 2, 2), "patch_embedding.bias": (D,), "head.modulation": (1, 2, D)}
    root |= linears(LINEARS) | norms({"img_emb.proj.0": 1280, "img_emb.proj.4": D})
    return root | in_blocks(block | {"modulation": (1, 6, D)})


def multitalk_14b() -> dict[str, tuple[int, ...]]:
    root = linears(AUDIO_LINEARS) | norms({"audio_proj.norm": 768})
    return root | in_blocks(linears(AUDIO_BLOCK_LINEARS) | norms({"norm_x": D}))


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

    base, audio = wan_14b(), multitalk_14b()

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
