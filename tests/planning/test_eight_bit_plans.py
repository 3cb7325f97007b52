"""Plans of quant=int8-dynamic and fp8-dynamic: what runs in 8 bits, how long it takes, what it holds, and where."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_sizes import SMALL

from engine import EngineService, Request, Speaker
from engine.assembly.compatibility import check_device, check_suited
from engine.assembly.compose import compose
from engine.data.estimates import CardEstimate
from engine.errors import ConfigError
from engine.loading.quantize import is_block_linear
from engine.planning import memory
from engine.planning.gpus import find_card
from engine.planning.memory import Load, Work
from engine.planning.operations import Multiplied, block_linears, forward_work
from engine.planning.parameters import Quant, make_sizes, published_sizes
from engine.planning.seconds import forward_seconds
from engine.plugin.manager import installed
from plugins.families.multitalk.transformer import MultiTalkTransformer3DModel

EXAMPLES = Path(__file__).parents[2] / "engine" / "examples"
REQUEST = Request("a person talks", str(EXAMPLES / "two.png"), (Speaker(str(EXAMPLES / "one.flac")),), frames=81)
CONFIG = published_sizes("wan-14b").configs["transformer"]
#: 81 frames at 896 x 448.
LATENTS = (21, 56, 112)


@pytest.fixture(autouse=True)
def unadvised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.service.advise", lambda estimates, *_: estimates)


def test_the_layers_that_are_counted_are_the_network_s() -> None:
    with torch.device("meta"):
        network: Any = MultiTalkTransformer3DModel(**SMALL["transformer"])
    layers = {
        name.removeprefix("blocks.0."): (layer.in_features, layer.out_features)
        for name, layer in network.named_modules()
        if is_block_linear(layer, name) and name.startswith("blocks.0.")
    }
    counted = block_linears(make_sizes(SMALL).configs["transformer"], (3, 4, 4), speakers=2)
    assert {layer.name: (layer.inputs, layer.outputs) for layer in counted} == layers


@pytest.mark.parametrize("format_", ["int8", "fp8"])
def test_nearly_all_products_run_in_8_bits_at_the_card_s_rate(format_: str) -> None:
    plain = forward_work(CONFIG, LATENTS, value=2, speakers=2)
    small = forward_work(CONFIG, LATENTS, value=2, speakers=2, multiplied=Multiplied(format_))

    assert small.products == plain.products
    assert 0.999 < small.in_8_bits / small.products < 1
    card = find_card("H100 80 GB")
    assert card is not None
    # Twice the rate for products; but activations are read once more, and sums of int8 written and read.
    saved = forward_seconds(card, plain) - forward_seconds(card, small)
    assert saved == pytest.approx({"int8": 0.44, "fp8": 0.68}[format_], abs=0.1)
    unable = replace(card, int8_tops=0, fp8_tflops=0)
    assert forward_seconds(unable, small) > forward_seconds(unable, plain)


def test_layers_that_are_kept_do_not_count() -> None:
    whole, fewer, one = (
        forward_work(CONFIG, LATENTS, value=2, multiplied=Multiplied("fp8", keep)).in_8_bits
        for keep in ((), ("ffn",), ("blocks.0.ffn",))
    )
    feed_forward = 2 * 2 * 21 * 28 * 56 * 5120 * 13824
    assert whole - fewer == 40 * feed_forward
    assert whole - one == feed_forward


def test_the_text_encoder_is_quantised_too_and_published_files_are_never_dense() -> None:
    sizes = published_sizes("wan-14b")
    work = Work(LATENTS, 81, 448, 896, speakers=2, passes=3, seconds=3.24)
    load = Load(
        "cuda", "bfloat16", "int8-dynamic", "none", 1, made=Quant(1, 4), multiplied=Multiplied("int8"), text=True
    )
    alone = memory.weights_bytes(sizes, replace(load, text=False))
    weights = memory.weights_bytes(sizes, load)

    # 256384 tokens in 16 bits, and 24 blocks of 193 million values.
    assert weights["text_encoder"] == pytest.approx(256384 * 4096 * 2 + 24 * 192.9e6, rel=0.01)
    assert alone["text_encoder"] == pytest.approx(11.36e9, rel=0.01)
    full, stored = (
        memory.stages(sizes, replace(load, stored=form), work)[0].weights for form in ("none", "int8-quanto")
    )
    assert full["transformer"] == pytest.approx(38.1e9, rel=0.02)
    assert stored["transformer"] == weights["transformer"] == pytest.approx(19.6e9, rel=0.03)


def test_a_plan_says_how_much_runs_in_8_bits_and_leaves_out_cards_that_cannot() -> None:
    plans = {
        quant: EngineService(("model=multitalk", "memory=none", f"quant={quant}")).plan(REQUEST)
        for quant in ("none", "fp8-dynamic")
    }
    estimates = {quant: plan.estimates for quant, plan in plans.items()}
    plain, small = estimates["none"], estimates["fp8-dynamic"]
    assert plain is not None
    assert small is not None

    def card(cards: tuple[CardEstimate, ...], name: str) -> CardEstimate | None:
        return next((card for card in cards if card.card == name), None)

    assert (plain.products_in_8_bits, small.products_in_8_bits > 0.99) == (0, True)
    h100 = card(plain.cards, "H100 80 GB"), card(small.cards, "H100 80 GB")
    assert h100[0] is not None
    assert h100[1] is not None
    assert h100[1].step_seconds < 0.9 * h100[0].step_seconds
    assert card(small.cards, "A100 80 GB") is None
    (told,) = (warning for warning in plans["fp8-dynamic"].warnings if "A100" in warning)
    assert told.startswith("A6000 48 GB, A100 80 GB cannot run quant=fp8-dynamic: fp8 products need compute capability")


@pytest.mark.parametrize("weights", [True, False])
def test_a_machine_whose_card_cannot_is_told_by_its_plan_and_before_loading(
    weights: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("compatibility", "estimates"):
        monkeypatch.setattr(f"engine.assembly.{module}.installed_cards", lambda: ("NVIDIA A100-SXM4-80GB",))
    overrides = ("quant=fp8-dynamic", "model=tiny" if weights else "model=multitalk")
    told = "A100 80 GB has compute capability 8.0, and fp8 products need 8.9"

    warnings = EngineService(overrides).plan(REQUEST).warnings

    assert warnings[0].startswith(f"no video can be generated by this config: quant: {told}")
    config, registry = compose(overrides), installed()
    with pytest.raises(ConfigError, match=told):
        check_suited(config, Path("nowhere"), registry)
    check_device(compose((*overrides, "device=cpu")), registry)
