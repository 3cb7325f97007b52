"""LoRA files: merged like the reference, switched at run time without a trace."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from whole_tensors import merge_lora

from engine.errors import SourceError
from engine.loading.key_map import to_engine
from engine.loading.lora import LoraMerger, load_runtime_lora, read_deltas

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


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("dora_scale", "DoRA"),
        ("lora_magnitude_vector.default.weight", "DoRA"),
        ("lora_magnitude_vector", "DoRA"),
        ("hada_t1", "Tucker"),
        ("lora_mid.weight", "Tucker"),
        ("lora_E", "AdaLoRA"),
        ("oft_blocks", "OFT"),
        ("a1.weight", "GLoRA"),
        ("set_weight", "whole weights"),
    ],
)
def test_another_kind_of_adapter_is_refused_by_name(key: str, kind: str, lora: dict[str, Tensor]) -> None:
    with pytest.raises(SourceError, match=f"{key} is of an unsupported adapter: .*{kind}"):
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


def test_runtime_lora_name_is_taken_once(home_recordings: Any, lora: dict[str, Tensor]) -> None:
    model = home_recordings.model("model_A")
    load_runtime_lora(model, lora, "turbo")

    with pytest.raises(SourceError, match="loaded already"):
        load_runtime_lora(model, lora, "turbo")


#: Spellings of a change of the modulation tables, of the first block and of the head.
TABLES = [
    ("diffusion_model.blocks.0.diff_m", "diffusion_model.head.diff_m"),
    ("blocks.0.modulation.diff", "head.modulation.diff"),
    ("transformer.blocks.0.scale_shift_table.diff", "transformer.scale_shift_table.diff"),
    ("lora_unet_blocks_0.diff_m", "lora_unet_head.diff_m"),
    ("lora_unet__blocks_0_modulation.diff", "lora_unet__head_modulation.diff"),
]


@pytest.mark.parametrize("names", TABLES)
def test_change_of_the_modulation_is_the_same_beside_the_weights_and_merged(
    names: tuple[str, str], home_recordings: Any
) -> None:
    generator = torch.Generator().manual_seed(1)
    block, head = names
    file = {
        block: 0.3 * torch.randn(1, 6, 64, generator=generator),
        head: 0.3 * torch.randn(1, 2, 64, generator=generator),
    }
    merged = dict(home_recordings.tensors("model_A"))
    coverage = merge_lora(merged, file, scale=0.7)
    expected = forward(home_recordings.model("model_A", state=merged), home_recordings)
    model = home_recordings.model("model_A")
    before = forward(model, home_recordings)

    table = load_runtime_lora(model, file, "table")
    off = forward(model, home_recordings)
    with table.use(0.7):
        on = forward(model, home_recordings)

    assert (coverage.unmatched, coverage.entries) == ((), 2)
    torch.testing.assert_close(on, expected, atol=1e-5, rtol=0)
    assert not torch.allclose(on, before, atol=1e-2)
    assert torch.equal(off, before)
    assert torch.equal(forward(model, home_recordings), before)


#: Norms of a published file; they are changed as whole tensors.
NORMS = ("norm_q", "norm_k", "norm_k_img", "norm3", "img_emb.proj.0", "img_emb.proj.4")


def distilled(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a LoRA of a whole network in the layout of LightX2V's published step distillations.

    Pairs `lora_down` and `lora_up` for linear layers, `diff` for norms and the head, `diff_b` for biases, `diff_m` for
    modulation tables; nothing for the audio layers, which those networks do not have.
    """
    random = torch.Generator().manual_seed(4)

    def noise(*shape: int) -> Tensor:
        return 0.05 * torch.randn(*shape, generator=random)

    file = {}
    for name, tensor in tensors.items():
        module, _, leaf = name.rpartition(".")
        if "audio" in name or "norm_x" in name:
            continue
        name = f"diffusion_model.{module}"
        if leaf == "modulation":
            file[f"{name}.diff_m"] = noise(*tensor.shape)
        elif leaf == "bias":
            file[f"{name}.diff_b"] = noise(*tensor.shape)
        elif module.endswith((*NORMS, "head.head", "patch_embedding")):
            file[f"{name}.diff"] = noise(*tensor.shape)
        else:
            file[f"{name}.lora_down.weight"] = noise(2, tensor.shape[1])
            file[f"{name}.lora_up.weight"] = noise(tensor.shape[0], 2)
    return file


def test_every_entry_of_a_published_distillation_changes_the_network(home_recordings: Any) -> None:
    before = home_recordings.tensors("model_A")
    file = distilled(before)
    kinds = {name.rpartition(".")[2] for name in file}
    assert {"diff", "diff_b", "diff_m", "weight"} == kinds
    merged = dict(before)
    coverage = merge_lora(merged, file)
    changed = {name for name in before if not torch.equal(merged[name], before[name])}
    assert coverage.unmatched == ()
    assert changed == {name for name in before if "audio" not in name and "norm_x" not in name}
    expected = forward(home_recordings.model("model_A", state=merged), home_recordings)
    model = home_recordings.model("model_A")
    plain = forward(model, home_recordings)
    lora = load_runtime_lora(model, file, "distilled")
    with lora.use():
        on = forward(model, home_recordings)
    # Sums in another order, in float32.
    torch.testing.assert_close(on, expected, atol=1e-4, rtol=0)
    assert not torch.allclose(on, plain, atol=1e-2)
    assert torch.equal(forward(model, home_recordings), plain)


def test_bias_of_a_pair_is_scaled_as_its_pair_is(home_recordings: Any) -> None:
    down, up, bias = torch.randn(4, 64), torch.randn(64, 4), torch.randn(64)
    name = "transformer.blocks.0.attn1.to_q"
    file = {
        f"{name}.lora_A.weight": down,
        f"{name}.lora_B.weight": up,
        f"{name}.lora_B.bias": bias,
        f"{name}.alpha": torch.tensor(2.0),
    }
    state = {"blocks.0.attn1.to_q.weight": torch.zeros(64, 64), "blocks.0.attn1.to_q.bias": torch.zeros(64)}

    coverage = merge_lora(state, file)

    torch.testing.assert_close(state["blocks.0.attn1.to_q.weight"], 0.5 * up @ down)
    torch.testing.assert_close(state["blocks.0.attn1.to_q.bias"], 0.5 * bias)
    assert coverage.unmatched == ()


def loha(rows: int, columns: int, rank: int = 3) -> dict[str, Tensor]:
    return {
        f"hada_{one}_{half}": torch.randn(*shape) / rank**0.5
        for one in ("w1", "w2")
        for half, shape in (("a", (rows, rank)), ("b", (rank, columns)))
    }


def lokr(rows: int, columns: int, rank: int = 3) -> dict[str, Tensor]:
    return {
        "lokr_w1": torch.randn(4, 2),
        "lokr_w2_a": torch.randn(rows // 4, rank),
        "lokr_w2_b": torch.randn(rank, columns // 2) / rank**0.5,
    }


@pytest.mark.parametrize("make", [loha, lokr])
@pytest.mark.parametrize("prefix", ["lycoris_", "lora_unet_"])
def test_loha_and_lokr_are_the_same_beside_the_weights_and_merged(make: Any, prefix: str, home_recordings: Any) -> None:
    torch.manual_seed(2)
    shapes = {"blocks_0_self_attn_q": (64, 64), "blocks_1_ffn_0": (128, 64), "patch_embedding": (64, 144)}
    file = {
        f"{prefix}{module}.{part}": tensor
        for module, shape in shapes.items()
        for part, tensor in (make(*shape) | {"alpha": torch.tensor(1.5)}).items()
    }
    merged = dict(home_recordings.tensors("model_A"))
    coverage = merge_lora(merged, file, scale=0.2)
    expected = forward(home_recordings.model("model_A", state=merged), home_recordings)
    model = home_recordings.model("model_A")
    before = forward(model, home_recordings)

    lora = load_runtime_lora(model, file, "other")
    with lora.use(0.2):
        on = forward(model, home_recordings)

    assert coverage.unmatched == ()
    torch.testing.assert_close(on, expected, atol=1e-4, rtol=0)
    assert not torch.allclose(on, before, atol=1e-2)
    assert torch.equal(forward(model, home_recordings), before)


def test_loha_is_the_product_of_two_products_by_alpha_over_rank() -> None:
    parts = loha(6, 5)
    name = "blocks.0.self_attn.q"

    delta = read_deltas({f"{name}.{part}": one for part, one in parts.items()} | {f"{name}.alpha": torch.tensor(6.0)})

    w1, w2 = (parts[f"hada_{one}_a"] @ parts[f"hada_{one}_b"] for one in ("w1", "w2"))
    torch.testing.assert_close(delta[0]["blocks.0.attn1.to_q.weight"].dense(w1.shape, "cpu"), 2 * w1 * w2)


def test_lokr_is_a_kronecker_product_and_knows_no_alpha_where_both_factors_are_whole() -> None:
    parts = lokr(8, 6)
    name, ours = "blocks.0.self_attn.q", "blocks.0.attn1.to_q.weight"
    alpha = {f"{name}.alpha": torch.tensor(6.0)}
    w2 = parts["lokr_w2_a"] @ parts["lokr_w2_b"]
    whole = {"lokr_w1": parts["lokr_w1"], "lokr_w2": w2}

    for file, scale in ((parts, 2.0), (whole, 1.0)):
        delta, _ = read_deltas({f"{name}.{part}": one for part, one in file.items()} | alpha)
        expected = scale * torch.kron(parts["lokr_w1"], w2)
        torch.testing.assert_close(delta[ours].dense(torch.Size((8, 6)), "cpu"), expected)


@pytest.mark.parametrize(
    "name",
    [
        "lora_unet_blocks_1.ffn.0",
        "lora_unet_blocks_1_ffn.0",
        "lycoris_blocks_1_ffn_0",
        "lora_blocks_1_ffn_net_0_proj",
        "_orig_mod.blocks.1.ffn.0",
        "diffusion_model.blocks.1._orig_mod.ffn.0",
        "pipe.dit.blocks.1.ffn.0",
    ],
)
def test_names_of_mixed_spelling_are_understood(name: str) -> None:
    down, up = torch.randn(3, 64), torch.randn(128, 3)
    state = {"blocks.1.ffn.0.weight": torch.zeros(128, 64)}

    coverage = merge_lora(state, {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up})

    torch.testing.assert_close(state["blocks.1.ffn.0.weight"], up @ down)
    assert coverage.unmatched == ()


def test_norms_of_lycoris_are_changes_of_their_weight_and_bias() -> None:
    state = {"blocks.0.norm3.weight": torch.ones(4), "blocks.0.norm3.bias": torch.zeros(4)}

    merge_lora(state, {"lycoris_blocks_0_norm3.w_norm": torch.ones(4), "lycoris_blocks_0_norm3.b_norm": torch.ones(4)})

    assert state["blocks.0.norm3.weight"].tolist() == [2.0] * 4
    assert state["blocks.0.norm3.bias"].tolist() == [1.0] * 4


def test_two_entries_of_one_meaning_are_an_error(lora: dict[str, Tensor]) -> None:
    twin = {
        "lora_unet_blocks_0_self_attn_q.lora_down.weight": torch.ones(3, 64),
        "lora_unet_blocks_0_self_attn_q.lora_up.weight": torch.ones(64, 3),
    }
    with pytest.raises(SourceError, match="mean the same"):
        read_deltas(lora | twin)


@pytest.mark.parametrize("foreign", [5, 6])
def test_a_file_of_which_more_than_half_matches_nothing_is_an_error(foreign: int) -> None:
    state = {f"blocks.{index}.self_attn.q.bias": torch.zeros(4) for index in range(5)}
    file = {f"blocks.{index}.self_attn.q.diff_b": torch.ones(4) for index in range(5)}
    file |= {f"blocks.{40 + index}.self_attn.q.diff_b": torch.ones(4) for index in range(foreign)}

    if foreign == 5:
        coverage = merge_lora(state, file)
        assert (len(coverage.unmatched), coverage.entries) == (5, 10)
    else:
        with pytest.raises(SourceError, match="6 of 11 entries match no tensor"):
            merge_lora(state, file)
