"""What users of diffusers do with the network beside training and compiling it.

diffusers' own tests of models ask most of it, too: `nox -s diffusers`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from plugins.families.multitalk.transformer import MultiTalkTransformer3DModel

#: Projections of the self-attention, the text attention and the picture's.
PROJECTIONS = ["to_q", "to_k", "to_v", "to_out.0"]


@pytest.fixture
def folder(tiny: Any, tmp_path: Path) -> Path:
    tiny.model().save_pretrained(tmp_path / "transformer")
    return tmp_path / "transformer"


def test_wans_pipeline_of_diffusers_makes_latents_with_the_network(tiny: Any) -> None:
    from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanImageToVideoPipeline
    from PIL import Image
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

    model, asked = tiny.model(), []
    vae = AutoencoderKLWan(base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    sizes = CLIPVisionConfig(
        hidden_size=10, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4
    )
    words, without = torch.randn(2, 1, 4, 8, generator=torch.Generator().manual_seed(3))
    pipeline = WanImageToVideoPipeline(
        tokenizer=None,
        text_encoder=None,
        image_encoder=CLIPVisionModel(sizes),
        image_processor=CLIPImageProcessor(size={"shortest_edge": 8}, crop_size=8),
        transformer=model,
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )
    pipeline.set_progress_bar_config(disable=True)
    model.register_forward_pre_hook(lambda _model, _values, named: asked.append(named), with_kwargs=True)

    latents = pipeline(
        image=Image.new("RGB", (64, 32), "teal"),
        prompt_embeds=words,
        negative_prompt_embeds=without,
        height=32,
        width=64,
        num_frames=9,
        num_inference_steps=2,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(4),
        output_type="latent",
    ).frames

    assert latents.shape == (1, 16, *tiny.latent_shape)
    assert latents.isfinite().all()
    # Two steps with two passes each, and the text of the pass in each.
    assert [torch.equal(one["encoder_hidden_states"], words) for one in asked] == [True, False] * 2


def test_pyramid_attention_broadcast_of_diffusers_skips_every_attention(tiny: Any) -> None:
    from diffusers import PyramidAttentionBroadcastConfig

    model = tiny.model()
    exact = tiny.run(model)
    calls: list[str] = []
    for name, module in model.named_modules():
        if name.endswith(("attn1.to_q", "attn2.to_q", "audio_attn.to_q")):
            module.register_forward_hook(lambda *_, name=name: calls.append(name))

    model.enable_cache(
        PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=2,
            cross_attention_block_skip_range=2,
            current_timestep_callback=lambda: 500,
        )
    )
    counted, samples = [], []
    for _ in range(4):
        calls.clear()
        samples.append(tiny.run(model))
        counted.append(len(calls))
    model.disable_cache()

    assert counted == [6, 0, 6, 0]
    # The inputs never change: what is kept is what would be computed.
    for sample in (*samples, tiny.run(model)):
        assert torch.equal(sample, exact)


@pytest.mark.parametrize("change", [{"lora_bias": True}, {"use_dora": True}, {"rank_pattern": {"to_k": 4}}], ids=str)
def test_kinds_of_peft_adapters_work_and_come_back_from_a_file(
    tiny: Any, change: dict[str, Any], tmp_path: Path
) -> None:
    from peft import LoraConfig

    model = tiny.model()
    plain = tiny.run(model)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model.add_adapter(LoraConfig(r=2, target_modules=PROJECTIONS, init_lora_weights=False, **change))
    adapted = tiny.run(model)
    model.save_lora_adapter(tmp_path)
    model.unload_lora()
    torch.testing.assert_close(tiny.run(model), plain)

    model.load_lora_adapter(tmp_path, prefix=None, use_safetensors=True)

    assert (adapted - plain).abs().max() > 1e-2
    torch.testing.assert_close(tiny.run(model), adapted, atol=1e-4, rtol=1e-4)


def test_a_device_map_reads_blocks_from_the_disk_when_they_run(tiny: Any, folder: Path, tmp_path: Path) -> None:
    first = tiny.model()
    places = {name: "cpu" for name, _ in first.named_children() if name != "blocks"}

    model = MultiTalkTransformer3DModel.from_pretrained(
        folder,
        # diffusers refuses a map with "" for all the others, of its own Wan as well.
        device_map=places | {"scale_shift_table": "cpu", "blocks.0": "cpu", "blocks.1": "disk"},
        offload_folder=tmp_path / "spilled",
    )

    assert model.blocks[1].attn1.to_q.weight.is_meta
    torch.testing.assert_close(tiny.run(model), tiny.run(first))


def test_group_offloading_to_the_disk_changes_nothing(tiny: Any, tmp_path: Path) -> None:
    model, cpu = tiny.model(), torch.device("cpu")
    expected = tiny.run(model)

    model.enable_group_offload(cpu, cpu, "block_level", num_blocks_per_group=1, offload_to_disk_path=str(tmp_path))

    assert list(tmp_path.glob("*.safetensors"))
    torch.testing.assert_close(tiny.run(model), expected)


def test_torchao_quantises_while_diffusers_loads(tiny: Any, folder: Path) -> None:
    from diffusers import TorchAoConfig
    from torchao.quantization import Int8WeightOnlyConfig

    exact = tiny.run(tiny.model())

    model = MultiTalkTransformer3DModel.from_pretrained(
        folder, quantization_config=TorchAoConfig(Int8WeightOnlyConfig()), torch_dtype=torch.bfloat16
    )

    weights = [weight for name, weight in model.named_parameters() if name.endswith("attn1.to_q.weight")]
    assert len(weights) == 2
    assert all(type(weight) is not torch.nn.Parameter for weight in weights)
    assert 0 < (tiny.run(model) - exact).norm() / exact.norm() < 0.1
