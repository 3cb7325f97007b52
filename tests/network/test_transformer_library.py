"""What makes the network a first-class diffusers model, each on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FirstBlockCacheConfig, MagCacheConfig
from torch import Tensor

from engine.network.precision import kept_in_float32
from plugins.families.multitalk.transformer import MultiTalkTransformer3DModel


def test_sharded_variant_comes_back_as_it_was(tiny: Any, tmp_path: Path) -> None:
    model = tiny.model()
    model.save_pretrained(tmp_path, max_shard_size="20KB", variant="ema")

    loaded = MultiTalkTransformer3DModel.from_pretrained(tmp_path, variant="ema")

    assert len(list(tmp_path.glob("*ema*.safetensors"))) > 2
    assert {name: loaded.config[name] for name in tiny.config} == tiny.config
    for name, parameter in model.named_parameters():
        assert torch.equal(loaded.get_parameter(name), parameter), name
    torch.testing.assert_close(tiny.run(loaded), tiny.run(model))


def test_bfloat16_load_keeps_float32_parts_and_leaves_nothing_on_meta(tiny: Any, tmp_path: Path) -> None:
    model = tiny.model()
    model.save_pretrained(tmp_path)

    loaded = MultiTalkTransformer3DModel.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)

    assert not any(tensor.is_meta for tensor in [*loaded.parameters(), *loaded.buffers()])
    for name, parameter in loaded.named_parameters():
        assert parameter.dtype == (
            torch.float32 if kept_in_float32(MultiTalkTransformer3DModel, name) else torch.bfloat16
        ), name
    exact = tiny.run(model)
    assert (tiny.run(loaded) - exact).norm() / exact.norm() < 0.05


def gradients(model: Any, tiny: Any) -> dict[str, Tensor]:
    model(**tiny.latents(), **tiny.conditions(2)).sample.square().mean().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def test_gradient_checkpointing_gives_the_same_gradients(tiny: Any) -> None:
    plain, saving = tiny.model().train(), tiny.model().train()
    saving.enable_gradient_checkpointing()
    once, twice = ([count_calls(block) for block in model.blocks] for model in (plain, saving))

    expected, actual = gradients(plain, tiny), gradients(saving, tiny)

    # Nothing inside a block is kept: going backward runs it again.
    assert [len(calls) for calls in once] == [1, 1]
    assert [len(calls) for calls in twice] == [2, 2]
    assert all(gradient is not None for gradient in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, msg=name)


def test_gradients_are_those_of_finite_differences(tiny: Any) -> None:
    model = tiny.model()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    latents = tiny.latents()
    latents["hidden_states"].requires_grad_(True)
    loss = model(**latents, **tiny.conditions(1)).sample.square().mean()
    (gradient,) = torch.autograd.grad(loss, latents["hidden_states"])
    direction = gradient / gradient.norm()

    with torch.no_grad():
        ends = []
        for sign in (1, -1):
            moved = latents | {"hidden_states": latents["hidden_states"] + sign * 0.01 * direction}
            ends.append(model(**moved, **tiny.conditions(1)).sample.square().mean())

    assert float((ends[0] - ends[1]) / 0.02) == pytest.approx(float(gradient.norm()), rel=0.02)


def test_training_lowers_the_loss(tiny: Any) -> None:
    model = tiny.model().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    target = torch.randn(1, 16, *tiny.latent_shape, generator=torch.Generator().manual_seed(3))
    losses = []

    for _ in range(4):
        loss = (model(**tiny.latents(), **tiny.conditions(2)).sample - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.9 * losses[0]


def test_a_bfloat16_network_trains_under_autocast_to_float16(tiny: Any) -> None:
    model = tiny.model().bfloat16()
    with torch.no_grad():
        plain = model(**tiny.latents(), **tiny.conditions(2)).sample

    with torch.autocast("cpu", torch.float16):
        sample = model(**tiny.latents(), **tiny.conditions(2)).sample
        sample.norm().backward()

    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    # Both round, and a token at a border may change its speaker.
    assert (sample - plain).norm() / plain.norm() < 0.1


def test_peft_adapter_trains_alone_and_scales(tiny: Any) -> None:
    from peft import LoraConfig

    model = tiny.model()
    expected = tiny.run(model)
    model.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_kv"], init_lora_weights=False), "face")

    with torch.no_grad():
        off = model(**tiny.latents(), **tiny.conditions(), attention_kwargs={"scale": 0.0}).sample
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}

    assert all("lora_" in name for name in trained)
    assert any("audio_attn.to_kv" in name for name in trained)
    assert (tiny.run(model) - expected).abs().max() > 1e-3
    torch.testing.assert_close(off, expected)
    model.disable_adapters()
    torch.testing.assert_close(tiny.run(model), expected)


def test_layerwise_casting_stores_block_layers_in_fp8(tiny: Any) -> None:
    model = tiny.model()
    exact = tiny.run(model)

    model.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    sample = tiny.run(model)

    stored = {name for name, parameter in model.named_parameters() if parameter.dtype == torch.float8_e4m3fn}
    assert {"blocks.0.audio_attn.to_kv.weight", "blocks.1.ffn.net.2.weight"} <= stored
    assert all(name.startswith("blocks.") and "norm" not in name for name in stored)
    assert 0 < (sample - exact).norm() / exact.norm() < 0.1


@pytest.mark.parametrize(
    "level", [{"offload_type": "block_level", "num_blocks_per_group": 1}, {"offload_type": "leaf_level"}]
)
def test_group_offloading_changes_nothing(tiny: Any, level: dict[str, Any]) -> None:
    model = tiny.model()
    expected = tiny.run(model)
    cpu = torch.device("cpu")

    model.enable_group_offload(onload_device=cpu, offload_device=cpu, **level)
    with torch.no_grad():
        conditions = model.embed_conditions(tiny.latent_shape, **tiny.conditions(2))
        embedded = model(**tiny.latents(), conditions=conditions).sample

    assert torch.equal(embedded, expected)
    assert torch.equal(tiny.run(model), expected)


def test_embedding_conditions_runs_the_hooks_of_the_root(tiny: Any) -> None:
    model, calls = tiny.model(), []
    model.register_forward_pre_hook(lambda _module, _args: calls.append("root"))

    model.embed_conditions(tiny.latent_shape, **tiny.conditions(1))

    assert calls == ["root"]


def denoise(model: Any, tiny: Any, passes: tuple[str, ...], steps: int) -> dict[str, list[Tensor]]:
    """Run slowly changing steps of several guidance passes, as a denoising loop does."""
    latents = tiny.latents()
    outputs: dict[str, list[Tensor]] = {name: [] for name in passes}
    conditions = {
        name: model.embed_conditions(tiny.latent_shape, **tiny.conditions(2 - index % 2))
        for index, name in enumerate(passes)
    }
    with torch.no_grad():
        for step in range(steps):
            for name in passes:
                with model.cache_context(name):
                    sample = model(
                        latents["hidden_states"] * (1 - 0.001 * step),
                        latents["timestep"] - 0.1 * step,
                        conditions=conditions[name],
                    ).sample
                outputs[name].append(sample)
    return outputs


def count_calls(block: Any) -> list[int]:
    calls: list[int] = []
    block.attn1.register_forward_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize(
    ("cache", "counted"),
    [
        (FirstBlockCacheConfig(threshold=0.05), 1),
        (
            MagCacheConfig(threshold=1.0, num_inference_steps=4, mag_ratios=torch.ones(4), retention_ratio=0.3),
            0,
        ),
    ],
    ids=["first block", "mag"],
)
def test_step_cache_skips_blocks_and_keeps_passes_apart(tiny: Any, cache: Any, counted: int) -> None:
    passes = ("cond", "uncond")
    exact = denoise(tiny.model(), tiny, passes, 4)
    model = tiny.model()
    calls = count_calls(model.blocks[counted])

    model.enable_cache(cache)
    cached = denoise(model, tiny, passes, 4)
    ran = len(calls)
    model.disable_cache()
    after = denoise(model, tiny, passes, 1)

    assert 2 <= ran < 8
    for name in passes:
        assert torch.equal(cached[name][0], exact[name][0])
        assert torch.equal(after[name][0], exact[name][0])
        for approximate, true in zip(cached[name], exact[name], strict=True):
            assert (approximate - true).norm() / true.norm() < 0.05


@pytest.mark.parametrize("speakers", [1, 2])
def test_repeated_blocks_compile_without_graph_breaks(tiny: Any, speakers: int) -> None:
    model = tiny.model()
    expected = tiny.run(model, speakers)

    torch._dynamo.reset()
    model.compile_repeated_blocks(fullgraph=True, backend="eager")

    torch.testing.assert_close(tiny.run(model, speakers), expected)
    latents = tiny.latents()
    loss = model(**latents, **tiny.conditions(speakers)).sample.square().mean()
    loss.backward()
    assert model.blocks[0].attn1.to_q.weight.grad.isfinite().all()
