"""quant=int8-dynamic and fp8-dynamic: which layers multiply in 8 bits, from which files, with what error."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from small_weights import WANTED, WEIGHTS, put
from torch import Tensor, nn

from engine.components import MultiplyingQuantiser
from engine.errors import ConfigError
from engine.loading.dynamic import FORMATS, STAYS, check_layers, is_dynamic, quantise_blocks, quantise_text
from engine.loading.lora import load_runtime_lora
from engine.loading.placement import Profile, stream_blocks
from engine.loading.quantize import is_block_linear
from engine.loading.quanto import quantise
from engine.network.precision import cast_model
from engine.plugin.manager import installed
from plugins.families.multitalk.model import load_multitalk

pytest.importorskip("torchao")

QUANTS = {"int8-dynamic": "int8", "fp8-dynamic": "fp8"}
#: Relative error of a recorded forward, measured with weights alone in 8 bits and with products in 8 bits: int8 1.06 %
#: and 1.4 %, float8 3.6 % and 5.2 %.
BOUNDS = {"int8": 0.02, "fp8": 0.07}


def make(quant: str, **fields: Any) -> MultiplyingQuantiser:
    register = installed().quants
    kind: Any = register.config(quant)
    made = register.build(kind(**fields))
    assert isinstance(made, MultiplyingQuantiser)
    return made


def forward(model: Any, recordings: Any) -> Tensor:
    sample: Tensor = recordings.replay(model, recordings.tensors("forward_b_two_default"))
    return sample


def error(given: Tensor, wanted: Tensor) -> float:
    return float((given - wanted).norm() / wanted.norm())


def dynamic(network: nn.Module) -> set[str]:
    return {name for name, layer in network.named_modules() if is_dynamic(getattr(layer, "weight", None))}


@pytest.mark.parametrize("quant", QUANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_recorded_forward_stays_near_the_plain_one(quant: str, dtype: torch.dtype, home_recordings: Any) -> None:
    plain = forward(cast_model(home_recordings.model("model_A"), dtype), home_recordings)
    model = cast_model(home_recordings.model("model_A"), dtype)

    make(quant).apply(model, is_block_linear)

    assert len(dynamic(model)) == 2 * 15
    assert all(name.startswith("blocks.") for name in dynamic(model))
    assert 0 < error(forward(model, home_recordings), plain) < BOUNDS[QUANTS[quant]]


def test_layers_that_stay_are_listed_with_reasons(home_recordings: Any) -> None:
    model = home_recordings.model("model_A")
    outside = {name.partition(".")[0] for name, _ in model.named_parameters() if not name.startswith("blocks.")}

    assert outside == STAYS.keys()
    page = (Path(__file__).parents[2] / "docs" / "weights.md").read_text("utf-8")
    rows = "\n".join(f"| `{name}` | {reason} |" for name, reason in STAYS.items())
    assert f"<!-- stays -->\n{rows}\n<!-- /stays -->" in page


def test_layers_can_be_kept_by_parts_of_their_names(home_recordings: Any) -> None:
    model = home_recordings.model("model_A")

    make("int8-dynamic", keep=["audio_attn", "blocks.0.ffn"]).apply(model, is_block_linear)

    assert len(dynamic(model)) == 2 * 12 - 2
    assert type(model.blocks[1].audio_attn.to_q.weight.data) is Tensor
    with pytest.raises(ConfigError, match=r"no layer's name contains 'audio_attention'") as caught:
        make("int8-dynamic", keep=["audio_attention"]).apply(model, is_block_linear)
    assert "audio_attn.to_q" in caught.value.hint


@pytest.mark.parametrize("products", FORMATS)
def test_stored_values_are_multiplied_as_they_are(products: str) -> None:
    block = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(32, 16)])})
    stored = quantise(torch.randn(16, 32), FORMATS[products])
    weight: Any = stored.kept(torch.bfloat16)
    block.get_submodule("blocks.0").weight = nn.Parameter(weight, requires_grad=False)

    quantise_blocks(block, products, is_block_linear)

    made: Any = block.get_submodule("blocks.0").weight
    assert is_dynamic(made)
    assert (made.qdata.data_ptr(), made.scale.data_ptr()) == (weight.qdata.data_ptr(), weight.scale.data_ptr())
    other = next(name for name in FORMATS if name != products)
    with pytest.raises(ConfigError, match=rf"blocks\.0 is stored as \w+, not {other}") as caught:
        quantise_blocks(block, other, is_block_linear)
    assert caught.value.field == "quant.stored"


def scaled(weight: Tensor, dtype: torch.dtype, rows: int) -> tuple[Tensor, Tensor]:
    """Return values and scales as ComfyUI (one scale), Kijai (one per row) or DeepSeek (blocks) store them."""
    if rows == 0:
        scale = weight.abs().amax().reshape(()) / 100
        spread = scale
    else:
        scale = weight.view(-1, rows, weight.shape[1]).abs().amax(dim=(1, 2)).clamp_min(1e-6)[:, None] / 100
        spread = scale.repeat_interleave(rows, 0)
    values = weight / spread
    return (values.round() if dtype == torch.int8 else values).to(dtype), scale


@pytest.mark.parametrize("quant", QUANTS)
def test_a_change_of_a_lora_lies_beside_them(quant: str, home_recordings: Any) -> None:
    model = home_recordings.model("model_A")
    make(quant).apply(model, is_block_linear)
    bare = forward(model, home_recordings)
    dim = model.blocks[0].attn1.to_q.weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    lora = {
        "diffusion_model.blocks.0.self_attn.q.lora_down.weight": torch.randn(2, dim, generator=generator),
        "diffusion_model.blocks.0.self_attn.q.lora_up.weight": torch.randn(dim, 2, generator=generator),
        "diffusion_model.blocks.1.self_attn.k.diff_b": torch.randn(dim, generator=generator),
        "diffusion_model.blocks.1.self_attn.o.diff": torch.randn(dim, dim, generator=generator),
    }

    switch = load_runtime_lora(model, lora, "one")
    off = forward(model, home_recordings)
    with switch.use(1.0):
        on = forward(model, home_recordings)

    assert torch.equal(off, bare)
    assert error(on, bare) > 0.02


@pytest.mark.parametrize("quant", QUANTS)
def test_streamed_blocks_compute_the_same(quant: str, home_recordings: Any) -> None:
    plain, model = (home_recordings.model("model_A") for _ in range(2))
    for one in (plain, model):
        make(quant).apply(one, is_block_linear)
    streamer = stream_blocks(model, "cpu", Profile("group-offload"))
    streamer.onload()

    assert torch.equal(forward(model, home_recordings), forward(plain, home_recordings))


def test_a_layer_that_no_gpu_multiplies_is_named() -> None:
    network = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(24, 16)])})
    quantise_blocks(network, "int8", is_block_linear)

    with pytest.raises(ConfigError, match=r"blocks\.0 is 16 x 24; on a GPU .* multiples of 16"):
        check_layers(network)


@pytest.mark.parametrize("products", FORMATS)
def test_the_text_encoder_s_second_layer_keeps_its_products(products: str) -> None:
    from transformers import UMT5Config, UMT5EncoderModel

    sizes: dict[str, Any] = {"vocab_size": 50, "d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 2, "num_heads": 2}
    torch.manual_seed(0)
    encoder: Any = UMT5EncoderModel(UMT5Config(**sizes))
    encoder.eval()
    ids = torch.arange(2, 14)[None]
    with torch.no_grad():
        plain = encoder(ids).last_hidden_state
        quantise_text(encoder, products)
        given = encoder(ids).last_hidden_state

    names = {name.rpartition(".")[2] for name in dynamic(encoder)}
    assert names == {"q", "k", "v", "o", "wi_0", "wi_1"}
    assert encoder.encoder.block[1].layer[1].DenseReluDense.wo.weight.qdata.dtype == FORMATS[products]
    assert 0 < error(given, plain) < 0.1


@pytest.mark.parametrize("quant", QUANTS)
@pytest.mark.parametrize(("rows", "told"), [(0, ""), (1, ""), (8, "more than one scale per row")])
def test_values_with_scales_become_the_layers_own_where_their_layout_allows(
    quant: str, rows: int, told: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dtype = FORMATS[QUANTS[quant]]
    name, stored = "blocks.0.ffn.0.weight", dict(WEIGHTS)
    values, scale = scaled(WEIGHTS[name], dtype, rows)
    # Blocks of 8 rows have more than one scale for a column, and one for a row: two columns of blocks have two.
    scale = scale if rows < 2 else torch.cat([scale, scale], dim=1)
    put(folder, stored | {name: values, "blocks.0.ffn.0.scale_weight": scale})

    with caplog.at_level(logging.INFO):
        model: Any = load_multitalk(
            folder, device="cpu", dtype="bfloat16", quant=quant, quantiser=make(quant), wanted=WANTED
        )

    weight = model.transformer.blocks[0].ffn.net[0].proj.weight
    assert is_dynamic(weight)
    assert torch.equal(weight.qdata.float(), values.float()) == (not told)
    assert told in caplog.text
    assert ("quantised again" in caplog.text) == bool(told)
