"""The whole network as a user of diffusers compiles, exports and adapts it; counted with backends that only trace."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from diffusers import TaylorSeerCacheConfig
from graphs import fresh_counters
from torch import Tensor

from engine.errors import ConfigError
from engine.network.embeddings import Rotary
from engine.network.speakers import Speakers, prepare_speakers
from plugins.families.multitalk.transformer import TransformerConditions


@pytest.fixture
def counters() -> Iterator[Any]:
    """What torch.compile counts, from zero."""
    yield fresh_counters()
    fresh_counters()


#: A graph rotates pairs by real arithmetic, other forwards as complex numbers: they differ in the last bits.
close = partial(torch.testing.assert_close, atol=1e-4, rtol=1e-4)


def inputs(tiny: Any, model: Any, speakers: int) -> dict[str, Any]:
    return {**tiny.latents(), "conditions": model.embed_conditions(tiny.latent_shape, **tiny.conditions(speakers))}


@pytest.mark.parametrize("speakers", [1, 2])
def test_the_whole_network_is_one_graph_at_its_first_and_second_call(tiny: Any, counters: Any, speakers: int) -> None:
    model = tiny.model(num_layers=1)
    expected = tiny.run(tiny.model(num_layers=1), speakers)

    compiled = torch.compile(model, fullgraph=True, backend="eager")

    for _ in range(2):
        close(tiny.run(compiled, speakers), expected)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


@pytest.mark.parametrize("speakers", [1, 2])
@torch.no_grad()
def test_an_exported_network_takes_conditions_and_survives_a_file(tiny: Any, speakers: int) -> None:
    model = tiny.model(num_layers=1)
    given = inputs(tiny, model, speakers)

    file = io.BytesIO()
    torch.export.save(torch.export.export(model, (), given), file)
    file.seek(0)
    # The example inputs are in the file, too.
    with torch.serialization.safe_globals([TransformerConditions, Rotary, Speakers]):
        loaded = torch.export.load(file).module()

    close(loaded(**given).sample, model(**given).sample)


@pytest.mark.slow
@torch.no_grad()
def test_a_network_is_exported_with_everything_that_it_embeds(tiny: Any) -> None:
    model = tiny.model(num_layers=1)
    given = {**tiny.latents(), **tiny.conditions(2)}

    exported = torch.export.export(model, (), given).module()

    close(exported(**given).sample, model(**given).sample)


@torch.no_grad()
def test_constants_of_speakers_are_traced_with_a_mask_that_has_no_token(tiny: Any, counters: Any) -> None:
    masks = torch.zeros(3, 8, dtype=torch.bool)
    masks[0, :4] = True

    traced = torch.compile(prepare_speakers, fullgraph=True, backend="eager")(masks, 3, 12, 24, 4, torch.float32)

    expected = prepare_speakers(masks, 3, 12, 24, 4, torch.float32)
    for one, other in zip(traced[:-1], expected[:-1], strict=True):
        close(one, other)


def lora(rank: int, seed: int) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    state = {}
    for layer in ("blocks.0.attn1.to_q", "blocks.0.attn2.to_k", "blocks.0.audio_attn.to_q"):
        state[f"{layer}.lora_A.weight"] = torch.randn(rank, 24, generator=random)
        state[f"{layer}.lora_B.weight"] = torch.randn(24, rank, generator=random)
    return state


def test_a_compiled_network_swaps_loras_without_compiling_again(tiny: Any, counters: Any) -> None:
    first, second = lora(4, seed=1), lora(2, seed=2)
    expected = []
    for state in (first, second):
        plain = tiny.model(num_layers=1)
        plain.load_lora_adapter(state, prefix=None, adapter_name="voice")
        expected.append(tiny.run(plain))
    model = tiny.model(num_layers=1)
    model.enable_lora_hotswap(target_rank=4)
    model.load_lora_adapter(first, prefix=None, adapter_name="voice")
    compiled = torch.compile(model, fullgraph=True, backend="eager")

    before = tiny.run(compiled)
    model.load_lora_adapter(second, prefix=None, adapter_name="voice", hotswap=True)
    after = tiny.run(compiled)

    close(before, expected[0])
    close(after, expected[1])
    assert (after - before).abs().max() > 0.1
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.slow
def test_compiled_blocks_run_with_group_offloading_of_diffusers(tiny: Any, counters: Any) -> None:
    model, cpu = tiny.model(), torch.device("cpu")
    expected = tiny.run(model)

    model.enable_group_offload(
        onload_device=cpu, offload_device=cpu, offload_type="block_level", num_blocks_per_group=1
    )
    model.compile(backend="eager")

    close(tiny.run(model), expected)
    assert counters["stats"]["unique_graphs"] > 0


@pytest.mark.parametrize("speakers", [1, 2])
def test_taylorseer_of_diffusers_predicts_every_attention(tiny: Any, speakers: int) -> None:
    model = tiny.model()
    exact = tiny.run(model, speakers)
    calls: list[str] = []
    for name, module in model.named_modules():
        if name.endswith(("attn1.to_q", "attn2.to_q", "audio_attn.to_q")):
            module.register_forward_hook(lambda *_, name=name: calls.append(name))

    model.enable_cache(TaylorSeerCacheConfig(cache_interval=2, disable_cache_before_step=1))
    counted, samples = [], []
    with model.cache_context("cond"):
        for _ in range(4):
            calls.clear()
            samples.append(tiny.run(model, speakers))
            counted.append(len(calls))

    # Steps 0 and 2 compute, and the inputs never change.
    assert counted == [6, 0, 6, 0]
    for sample in samples:
        torch.testing.assert_close(sample, exact, atol=0.1, rtol=0.1)
    model.disable_cache()
    assert torch.equal(tiny.run(model, speakers), exact)


def test_patterns_of_taylorseer_are_kept(tiny: Any) -> None:
    model = tiny.model()
    chosen = TaylorSeerCacheConfig(cache_identifiers=[r"blocks\.0\.attn1"])

    model.enable_cache(replace(chosen))

    hooked = [name for name, module in model.named_modules() if getattr(module, "_diffusers_hook", None)]
    assert hooked == ["", "blocks.0.attn1"]


def test_fusing_projections_is_refused_and_changes_nothing(tiny: Any) -> None:
    model = tiny.model()
    names = list(model.state_dict())

    with pytest.raises(ConfigError, match="cannot be fused"):
        model.fuse_qkv_projections()

    assert list(model.state_dict()) == names
