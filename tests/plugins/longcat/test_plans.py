"""LongCat's sizes and operations for plans: they are what the network has, what torch counts and what it allocates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from allocations import allocated
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from engine import EngineService, Request, Speaker
from engine.data.estimates import Estimates
from plugins.families.longcat import operations, sizes
from plugins.families.longcat.frames import FrameLayout
from plugins.families.longcat.layers import feed_forward_width
from plugins.families.longcat.precision import cast_model, kept_in_float32
from plugins.families.longcat.transformer import AvatarTransformer3DModel

EXAMPLES = Path(__file__).parents[3] / "engine" / "examples"
#: Wide enough that single vectors do not count.
SMALL = {
    "hidden_size": 256,
    "depth": 2,
    "num_heads": 2,
    "caption_channels": 16,
    "adaln_tembed_dim": 32,
    "text_len": 8,
    "audio_block": 2,
    "audio_channel": 8,
    "intermediate_dim": 8,
    "output_dim": 16,
    "context_tokens": 4,
}
CONFIG = sizes.published_config("1.5") | SMALL
GRID = (16, 24)
LAYOUTS = (FrameLayout(6), FrameLayout(6, 1), FrameLayout(9, 3, True, 4, 1))
CASES = [
    (layout, voices, cached)
    for layout in LAYOUTS
    for voices in (1, 2)
    for cached in (False, True)
    if layout.given or (voices == 1 and not cached)
]


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def model(request: pytest.FixtureRequest) -> Any:
    return cast_model(AvatarTransformer3DModel(**SMALL).eval().requires_grad_(False), getattr(torch, request.param))


def prepared(model: Any, layout: FrameLayout, voices: int, cached: bool) -> tuple[Any, ...]:
    rows, columns = GRID
    masks = torch.zeros(3, rows, columns)
    for index in range(3):
        masks[index, :, index * columns // 3 : (index + 1) * columns // 3] = 1
    frames = 1 + 4 * (layout.total - int(layout.reference) - 1)
    conditions = model.embed_conditions(
        (layout.total, rows, columns), layout, torch.randn(1, 4, 16), torch.randn(voices, frames, 5, 2, 8), masks
    )
    cache = model.fill_cache(torch.randn(1, 16, layout.given, rows, columns), layout) if cached else None
    latents = torch.randn(1, 16, layout.noisy if cached else layout.total, rows, columns)
    return latents, torch.tensor([500.0]), conditions, cache


def counted(call: Any) -> int:
    # The fused kernel of a CPU is none that the counter knows.
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        call()
    total: int = counter.get_total_flops()
    return total


@pytest.mark.parametrize(("layout", "voices", "cached"), CASES)
def test_a_forward_makes_the_operations_and_holds_the_bytes_that_are_planned(
    model: Any, layout: FrameLayout, voices: int, cached: bool
) -> None:
    given = prepared(model, layout, voices, cached)
    value = model.y_embedder.y_proj[0].weight.element_size()
    choices: dict[str, Any] = {"value": value, "voices": voices, "cached": cached}

    work = operations.forward_work(CONFIG, layout, *GRID, **choices)
    planned = operations.forward_bytes(CONFIG, layout, *GRID, **choices, device="cpu")

    # The time embedding is not counted.
    assert work.operations == pytest.approx(counted(lambda: model(*given)), rel=1e-3)
    assert planned == pytest.approx(allocated(lambda: model(*given)), rel=0.03)


@pytest.mark.parametrize("layout", LAYOUTS[1:])
def test_a_cache_takes_the_operations_and_bytes_that_are_planned(model: Any, layout: FrameLayout) -> None:
    latents = torch.randn(1, 16, layout.given, *GRID)
    value = model.y_embedder.y_proj[0].weight.element_size()

    made = model.fill_cache(latents, layout)

    assert made.nbytes == sizes.cache_bytes(CONFIG, layout, *GRID, value=value)
    work = operations.fill_work(CONFIG, layout, *GRID)
    assert work.operations == pytest.approx(counted(lambda: model.fill_cache(latents, layout)), rel=1e-3)


def test_the_published_cache_has_the_published_size() -> None:
    """5 given frames of 480 x 832 pixels: 48 * 16384 bytes for each token of each of them."""
    config, layout = sizes.published_config("1.5"), FrameLayout(25, 5, True)

    assert sizes.cache_bytes(config, layout, 60, 104, value=2) == 48 * 16384 * 5 * 1560


def test_hidden_frames_and_given_ones_save_pairs() -> None:
    layout = FrameLayout(25, 5, True, 10, 3)

    assert operations.attended_pairs(layout, cached=True) == 20 * 25 - 7
    assert operations.attended_pairs(layout, cached=False) == 1 + 16 + 20 * 25 - 7
    assert operations.attended_pairs(FrameLayout(24, 1), cached=False) == 1 + 23 * 24


@pytest.mark.parametrize("version", ["1.0", "1.5"])
@pytest.mark.parametrize("prenorm", [False, True])
def test_parameters_are_counted_as_the_network_keeps_them(version: str, prenorm: bool) -> None:
    config = sizes.published_config(version) | {"audio_prenorm": prenorm}
    with torch.device("meta"):
        model = AvatarTransformer3DModel(**config)
    named = dict(model.named_parameters())
    exact = sum(one.numel() for name, one in named.items() if kept_in_float32(name))
    linears = [module for module in model.blocks.modules() if isinstance(module, nn.Linear)]

    count = sizes.transformer_count(config)

    assert count.parameters == sum(one.numel() for one in named.values())
    assert count.float32 == exact
    assert count.linear == sum(layer.weight.numel() for layer in linears)
    assert count.rows == sum(layer.out_features for layer in linears)
    assert sizes.inner_width(config) == feed_forward_width(config["hidden_size"], config["mlp_ratio"]) == 11008


def test_conditions_have_the_bytes_that_are_planned(model: Any) -> None:
    value = model.y_embedder.y_proj[0].weight.element_size()
    for layout in LAYOUTS[1:]:
        conditions = prepared(model, layout, 2, False)[2]
        held = sum(one.nbytes for one in (conditions.context, conditions.audio, conditions.rotary.turns))

        planned = sizes.conditions_bytes(CONFIG, layout, *GRID, value=value, voices=2, passes=1)

        assert planned == held


def test_the_encoder_of_whisper_has_the_parameters_that_are_planned() -> None:
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    with torch.device("meta"):
        encoder = WhisperEncoder(WhisperConfig(**sizes.WHISPER_LARGE_V3))

    assert sizes.whisper_parameters() == sum(one.numel() for one in encoder.parameters())


# --- through the engine -----------------------------------------------------------------------------------------------


def estimates(*words: str, frames: int = 120) -> Estimates:
    """Return the estimates of a plan of two speakers and two windows, without weights."""
    speakers = tuple(Speaker(str(EXAMPLES / name)) for name in ("left.flac", "right.flac"))
    request = Request("two people talk", str(EXAMPLES / "two.png"), speakers, frames=frames)
    plan = EngineService(["device=cuda", *words]).plan(request)
    assert plan.estimates is not None, plan.warnings
    return plan.estimates


@pytest.mark.slow
def test_a_plan_counts_the_family_s_own_network() -> None:
    told = estimates("model=longcat")
    assert told.parameters["transformer"] == 15_852_916_800
    assert told.weights["image_encoder"] == 0
    assert 31.6e9 < told.weights["transformer"] < 31.8e9
    # The published int8 file has 15.88 GB.
    assert estimates("model=longcat", "quant=int8-longcat").weights["transformer"] == pytest.approx(15.95e9, rel=0.01)
    assert estimates("model=longcat-1.0-two").weights["audio_encoder"] < told.weights["audio_encoder"]


def test_a_plan_shows_what_kept_keys_cost_and_save() -> None:
    kept, without = (estimates("model=longcat", f"family.keep_keys={choice}") for choice in ("true", "false"))
    # Keys and values of five latent frames at 480p: 48 x 2 x 5 x 1560 x 4096 values in 16 bits.
    assert kept.device_memory_bytes is not None
    assert without.device_memory_bytes is not None
    assert kept.forward_flops < 0.95 * without.forward_flops
    denoise = [next(one.temporaries for one in told.stages if one.stage == "denoise") for told in (kept, without)]
    assert denoise[0] > denoise[1]


def test_a_window_that_continues_another_has_fewer_new_frames_and_longer_keys() -> None:
    first, second = estimates("model=longcat", frames=50), estimates("model=longcat")
    assert first.forward_flops > second.forward_flops
    assert first.device_memory_bytes is not None
    assert second.device_memory_bytes is not None
    assert first.device_memory_bytes < second.device_memory_bytes
