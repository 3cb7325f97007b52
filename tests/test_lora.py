"""LoRA files: merged like the reference, switched at run time without a trace."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from engine.errors import SourceError
from engine.multitalk.keys import to_engine
from engine.multitalk.lora import LoraMerger, load_runtime_lora, merge_lora, read_deltas

TOLERANCE = 2e-6


def forward(model: Any, recordings: Any) -> Tensor:
    sample: Tensor = recordings.replay(model, recordings.tensors("forward_b_two_default"))
    return sample


def engine_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {to_engine(name): tensor for name, tensor in state.items()}


@pytest.fixture
def lora(home_recordings: Any) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = home_recordings.tensors("lora_in")
    return tensors


@pytest.mark.parametrize("names", ["reference", "engine"])
def test_merge_equals_the_recording(home_recordings: Any, lora: dict[str, Tensor], names: str) -> None:
    before, changed = home_recordings.tensors("model_A"), home_recordings.tensors("lora_out")
    if names == "engine":
        before, changed = engine_names(before), engine_names(changed)
    state = dict(before)

    coverage = merge_lora(state, lora, scale=0.8, use_alpha=False)

    for name, tensor in state.items():
        torch.testing.assert_close(tensor, changed.get(name, before[name]), atol=TOLERANCE, rtol=0, msg=name)
    assert set(coverage.matched) == set(changed)
    assert coverage.unmatched == ()


def test_alpha_scales_a_pair_by_alpha_over_rank(lora: dict[str, Tensor], home_recordings: Any) -> None:
    name = "blocks.0.self_attn.q"
    before = home_recordings.tensors("model_A")[f"{name}.weight"]
    alpha = float(lora[f"diffusion_model.{name}.alpha"])
    product = lora[f"diffusion_model.{name}.lora_up.weight"] @ lora[f"diffusion_model.{name}.lora_down.weight"]

    with_alpha = LoraMerger(lora, use_alpha=True).merge(f"{name}.weight", before)
    without = LoraMerger(lora, use_alpha=False).merge(f"{name}.weight", before)

    torch.testing.assert_close(with_alpha, before + product * alpha / 3)
    torch.testing.assert_close(without, before + product)
    assert not torch.allclose(with_alpha, without)


PAIRS = [
    ("lora_down", "lora_up"),
    ("lora_A", "lora_B"),
    ("lora_A.default", "lora_B.default"),
    ("lora_down.default", "lora_up.default"),
    ("lora.down", "lora.up"),
]


@pytest.mark.parametrize(
    "prefix", ["diffusion_model.", "transformer.", "unet.", "model.diffusion_model.", "base_model.model.", ""]
)
@pytest.mark.parametrize("module", ["blocks.1.ffn.0", "blocks.1.ffn.net.0.proj"])
@pytest.mark.parametrize("pair", PAIRS)
def test_every_spelling_of_a_pair_is_understood(prefix: str, module: str, pair: tuple[str, str]) -> None:
    down, up = torch.randn(3, 64), torch.randn(128, 3)
    file = {f"{prefix}{module}.{pair[0]}.weight": down, f"{prefix}{module}.{pair[1]}.weight": up}
    state = {"blocks.1.ffn.net.0.proj.weight": torch.zeros(128, 64)}

    merge_lora(state, file, scale=2.0)

    torch.testing.assert_close(state["blocks.1.ffn.net.0.proj.weight"], 2.0 * up @ down)


@pytest.mark.parametrize("prefix", ["lora_unet_", "lora_unet__", "lora_transformer_"])
def test_names_with_underscores_for_dots_are_understood(prefix: str, home_recordings: Any) -> None:
    modules = {name.rpartition(".")[0] for name in home_recordings.tensors("model_A") if name.endswith(".weight")}
    pair = {"lora_down.weight": torch.ones(1, 1), "lora_up.weight": torch.ones(1, 1), "alpha": torch.ones(())}
    ours = {to_engine(f"{module}.weight") for module in modules}

    for names in (modules, {name.removesuffix(".weight") for name in ours}):
        file = {f"{prefix}{name.replace('.', '_')}.{part}": tensor for name in names for part, tensor in pair.items()}
        deltas, unmatched = read_deltas(file)

        assert set(deltas) == ours
        assert unmatched == ()


def test_pair_without_alpha_is_taken_as_it_is() -> None:
    down, up = torch.randn(4, 64), torch.randn(64, 4)
    name = "blocks.0.self_attn.q"
    file = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}

    merged = LoraMerger(file).merge(f"{name}.weight", torch.zeros(64, 64))

    torch.testing.assert_close(merged, up @ down)


@pytest.mark.parametrize("key", ["dora_scale", "lora_magnitude_vector.default.weight", "hada_w1_a", "lokr_w2"])
def test_another_kind_of_adapter_is_refused_by_name(key: str, lora: dict[str, Tensor]) -> None:
    with pytest.raises(SourceError, match=key):
        read_deltas(lora | {f"diffusion_model.blocks.0.self_attn.q.{key}": torch.ones(1)})


def test_loras_are_stacked_each_with_its_scale(lora: dict[str, Tensor], home_recordings: Any) -> None:
    other = {name: tensor.flip(-1) if tensor.ndim else tensor for name, tensor in lora.items()}
    before = home_recordings.tensors("model_A")
    once, twice = dict(before), dict(before)

    merge_lora(once, lora, scale=0.8)
    merge_lora(twice, lora, scale=0.8)
    merge_lora(twice, other, scale=-0.3)

    name = "blocks.0.ffn.2"
    change = other[f"diffusion_model.{name}.lora_up.weight"] @ other[f"diffusion_model.{name}.lora_down.weight"]
    torch.testing.assert_close(twice[f"{name}.weight"], once[f"{name}.weight"] - 0.3 * change)


def test_pair_of_a_convolution_and_change_of_a_modulation_table() -> None:
    down, up = torch.randn(2, 36, 1, 2, 2), torch.randn(8, 2, 1, 1, 1)
    file = {
        "patch_embedding.lora_down.weight": down,
        "patch_embedding.lora_up.weight": up,
        "head.modulation.diff": torch.ones(1, 2, 8),
    }
    state = {"patch_embedding.weight": torch.zeros(8, 36, 1, 2, 2), "head.modulation": torch.zeros(1, 2, 8)}

    merge_lora(state, file, scale=0.5)

    expected = 0.5 * torch.einsum("or,rcthw->octhw", up[:, :, 0, 0, 0], down)
    torch.testing.assert_close(state["patch_embedding.weight"], expected)
    torch.testing.assert_close(state["head.modulation"], torch.full((1, 2, 8), 0.5))


def test_merging_keeps_the_dtype() -> None:
    state = {"head.head.bias": torch.ones(4, dtype=torch.bfloat16)}

    merge_lora(state, {"head.head.diff_b": torch.ones(4)})

    assert state["head.head.bias"].dtype == torch.bfloat16


def test_entries_without_a_tensor_are_reported(lora: dict[str, Tensor], home_recordings: Any) -> None:
    foreign = {
        "diffusion_model.mystery.lora_up.weight": torch.ones(1),
        "diffusion_model.blocks.9.ffn.0.diff_b": torch.ones(128),
    }

    coverage = merge_lora(home_recordings.tensors("model_A"), lora | foreign)

    assert set(coverage.unmatched) == set(foreign)


def test_lora_that_matches_nothing_is_an_error(home_recordings: Any) -> None:
    with pytest.raises(SourceError, match="no entry of the LoRA matches"):
        merge_lora(home_recordings.tensors("model_A"), {"unet.down.lora_up.weight": torch.ones(1, 1)})


def test_half_a_pair_is_an_error() -> None:
    with pytest.raises(SourceError, match="half of a pair"):
        merge_lora({"head.head.weight": torch.ones(4, 4)}, {"head.head.lora_up.weight": torch.ones(4, 1)})


def test_wrong_shape_is_an_error() -> None:
    with pytest.raises(SourceError, match="does not fit"):
        merge_lora({"head.head.weight": torch.ones(4, 4)}, {"head.head.diff": torch.ones(3, 4)})


def test_runtime_lora_equals_the_merge_and_leaves_no_trace(home_recordings: Any, lora: dict[str, Tensor]) -> None:
    merged = dict(home_recordings.tensors("model_A"))
    merge_lora(merged, lora, scale=0.8, use_alpha=False)
    expected = forward(home_recordings.model("model_A", state=merged), home_recordings)
    model = home_recordings.model("model_A")
    before = forward(model, home_recordings)

    turbo = load_runtime_lora(model, lora, "turbo", use_alpha=False)
    off = forward(model, home_recordings)
    with turbo.use(0.8):
        on = forward(model, home_recordings)
    after = forward(model, home_recordings)

    torch.testing.assert_close(on, expected, atol=1e-4, rtol=0)
    assert not torch.allclose(on, before, atol=1e-2)
    assert torch.equal(off, before)
    assert torch.equal(after, before)
    assert turbo.coverage.unmatched == ()


def test_two_runtime_loras_add_up_and_switch_apart(home_recordings: Any, lora: dict[str, Tensor]) -> None:
    second = {
        "blocks.0.attn1.to_q.lora_A.weight": torch.randn(2, 64),
        "blocks.0.attn1.to_q.lora_B.weight": torch.randn(64, 2),
    }
    second["proj_out.diff_b"] = torch.ones(64)
    merged = dict(home_recordings.tensors("model_A"))
    merge_lora(merged, lora, scale=0.5)
    only_first = forward(home_recordings.model("model_A", state=merged), home_recordings)
    merge_lora(merged, second, scale=0.1)
    both = forward(home_recordings.model("model_A", state=merged), home_recordings)
    model = home_recordings.model("model_A")
    one, two = load_runtime_lora(model, lora, "one"), load_runtime_lora(model, second, "two")

    one.enable(0.5)
    two.enable(0.1)
    torch.testing.assert_close(forward(model, home_recordings), both, atol=1e-4, rtol=0)
    two.disable()
    torch.testing.assert_close(forward(model, home_recordings), only_first, atol=1e-4, rtol=0)
    assert one.enabled
    assert not two.enabled


def test_runtime_lora_name_is_taken_once(home_recordings: Any, lora: dict[str, Tensor]) -> None:
    model = home_recordings.model("model_A")
    load_runtime_lora(model, lora, "turbo")

    with pytest.raises(SourceError, match="loaded already"):
        load_runtime_lora(model, lora, "turbo")


def test_runtime_lora_cannot_change_a_modulation_table(home_recordings: Any) -> None:
    with pytest.raises(SourceError, match="merged"):
        load_runtime_lora(home_recordings.model("model_A"), {"head.modulation.diff": torch.ones(1, 2, 64)}, "x")
