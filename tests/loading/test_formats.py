"""Weights in the formats that common tools write are read to the same numbers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from original_folder import CONFIG, FILES
from small_weights import AUDIO, E4M3, STATE, WAN, WANTED, WEIGHTS, hold_to, put, save, transformer
from torch import Tensor
from whole_tensors import read_part

from engine.data import Weights
from engine.errors import SourceError
from engine.loading.checkpoint import placed_size
from engine.loading.key_map import TOOL_PREFIXES, engine_name, to_engine
from engine.loading.layout import find_parts
from plugins.families.multitalk.model import load_multitalk
from plugins.families.multitalk.transformer import MultiTalkTransformer3DModel
from plugins.sources.volume import Volume, VolumeConfig

# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", *TOOL_PREFIXES, "_orig_mod.", "module._orig_mod.", "model.net."])
def test_what_a_tool_writes_before_all_names_is_passed_over(folder: Path, prefix: str) -> None:
    put(folder, {prefix + name: tensor for name, tensor in WEIGHTS.items()})
    hold_to(transformer(folder))


def test_wrappers_within_a_name_are_passed_over(folder: Path) -> None:
    inner = "blocks.{}._checkpoint_wrapped_module._orig_mod."
    named = {
        name if not name.startswith("blocks.") else inner.format(name.split(".")[1]) + name.split(".", 2)[2]: tensor
        for name, tensor in WEIGHTS.items()
    }
    put(folder, named)
    hold_to(transformer(folder))


def test_audio_weights_may_have_a_prefix_of_their_own(folder: Path) -> None:
    put(folder, WEIGHTS)
    named = {f"diffusion_model.{name}": tensor for name, tensor in AUDIO.items()}
    save(named, folder / "MeiGen-MultiTalk" / "multitalk.safetensors")
    hold_to(transformer(folder))


def test_all_of_it_may_be_one_file(folder: Path) -> None:
    put(folder, {f"model.diffusion_model.{name}": tensor for name, tensor in STATE.items()})
    shutil.rmtree(folder / "MeiGen-MultiTalk")
    hold_to(transformer(folder))


def test_the_layout_of_diffusers_may_hold_the_names_of_others(folder: Path) -> None:
    from tiny_folder import build_transformer

    build_transformer(image_dim=80, image_tokens=257).save_pretrained(folder / "transformer")
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    save({f"model.diffusion_model.{name}": tensor for name, tensor in STATE.items()}, path)
    hold_to(transformer(folder))


def test_a_name_that_is_nobodys_stays_unknown() -> None:
    assert engine_name("model.diffusion_model.blocks.0.nothing.weight") is None
    assert engine_name("strange.blocks.0.self_attn.q.weight") is None
    assert engine_name("_orig_mod.model.diffusion_model.head.modulation") == "scale_shift_table"


def test_two_files_of_one_folder_are_named_and_one_can_be_chosen(folder: Path) -> None:
    first = put(folder, WEIGHTS)
    save({name: tensor * 2 for name, tensor in WEIGHTS.items()}, first.with_name("other.safetensors"))
    with pytest.raises(SourceError, match=r"more than one transformer: diffusion_models/other.*quant\.file"):
        transformer(folder)
    hold_to(transformer(folder, file="diffusion_models/wan.safetensors"))


# --- encoders and autoencoder -----------------------------------------------------------------------------------------


def original(whole: Path, component: str) -> dict[str, Tensor]:
    state: dict[str, Tensor] = torch.load(whole / WAN / FILES[component], weights_only=True)
    return state


def as_transformers(whole: Path, component: str) -> dict[str, Tensor]:
    """Return a component's tensors as transformers and diffusers call them."""
    parts, _ = find_parts(whole, WANTED)
    state: dict[str, Tensor] = read_part(component, parts[component], torch.float32).state_dict()
    return state


def comfy_umt5(whole: Path) -> dict[str, Tensor]:
    state = as_transformers(whole, "text_encoder")
    return state | {"spiece_model": torch.zeros(50, dtype=torch.uint8)}


def comfy_umt5_scaled(whole: Path) -> dict[str, Tensor]:
    # Powers of two: what float8 holds of these weights comes back as it was.
    told = comfy_umt5(whole) | {"scaled_fp8": torch.zeros(0, dtype=E4M3)}
    for name in [name for name in told if "SelfAttention.q.weight" in name]:
        told[name] = (told[name] * 4).to(E4M3)
        told[name.replace(".weight", ".scale_weight")] = torch.tensor(0.25)
    return told


def comfy_clip(whole: Path) -> dict[str, Tensor]:
    state = {f"vision_model.{name}": tensor for name, tensor in as_transformers(whole, "image_encoder").items()}
    return state | {"visual_projection.weight": torch.zeros(8, 80), "logit_scale": torch.ones(())}


ENCODERS: dict[str, tuple[str, str, Callable[[Path], Mapping[str, Tensor]]]] = {
    "Kijai's umT5": ("text_encoder", "text_encoders/umt5-xxl-enc-bf16", lambda whole: original(whole, "text_encoder")),
    "ComfyUI's umT5": ("text_encoder", "text_encoders/umt5_xxl_fp16", comfy_umt5),
    "an umT5 with both tables": (
        "text_encoder",
        "umt5",
        lambda whole: (
            (state := as_transformers(whole, "text_encoder")) | {"encoder.embed_tokens.weight": state["shared.weight"]}
        ),
    ),
    "an umT5 behind a prefix": (
        "text_encoder",
        "text_encoder/x",
        lambda whole: {f"model.{name}": tensor for name, tensor in original(whole, "text_encoder").items()},
    ),
    "Kijai's CLIP": ("image_encoder", "clip_vision/open-clip", lambda whole: original(whole, "image_encoder")),
    "ComfyUI's CLIP": ("image_encoder", "clip_vision/clip_vision_h", comfy_clip),
    "Wan's VAE": ("vae", "vae/wan_2.1_vae", lambda whole: original(whole, "vae")),
    "a VAE behind a prefix": (
        "vae",
        "vae/Wan2_1_VAE_bf16",
        lambda whole: {f"first_stage_model.{name}": tensor for name, tensor in original(whole, "vae").items()},
    ),
    "diffusers' VAE without its config": ("vae", "vae/x", lambda whole: as_transformers(whole, "vae")),
}


@pytest.mark.parametrize(("component", "name", "make"), ENCODERS.values(), ids=ENCODERS.keys())
def test_encoders_in_safetensors_are_those_of_wans_own_files(
    whole: Path, tmp_path: Path, component: str, name: str, make: Callable[[Path], Mapping[str, Tensor]]
) -> None:
    expected = as_transformers(whole, component)
    folder = Path(shutil.copytree(whole, tmp_path / "multitalk"))
    (folder / WAN / FILES[component]).unlink()
    path = save(make(whole), folder / f"{name}.safetensors")

    parts, missing = find_parts(folder, WANTED)
    assert missing == ()
    assert parts[component].files == (path,)
    state = read_part(component, parts[component], torch.float32).state_dict()

    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], expected[key]) for key in expected)
    size = sum(tensor.nbytes for key, tensor in state.items() if key != "encoder.embed_tokens.weight")
    assert placed_size(component, parts[component], torch.float32, network=MultiTalkTransformer3DModel) == size


def test_an_umt5_with_scales_is_the_products(whole: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "multitalk"))
    (folder / WAN / FILES["text_encoder"]).unlink()
    save(comfy_umt5_scaled(whole), folder / "text_encoders" / "umt5_xxl_fp8_e4m3fn_scaled.safetensors")
    model: Any = load_multitalk(folder, device="cpu", dtype="float32", wanted=WANTED)
    name = "encoder.block.0.layer.0.SelfAttention.q.weight"
    expected = as_transformers(whole, "text_encoder")[name]
    with model.use("text_encoder"):
        actual = model.text.model.state_dict()[name]
    assert torch.equal(actual, (expected * 4).to(E4M3).float() / 4)
    assert not torch.equal(actual, expected)


def test_a_pickle_may_hold_the_network_beside_other_things(whole: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "multitalk"))
    path = folder / WAN / FILES["text_encoder"]
    torch.save(
        {"step": 5, "state_dict": {f"module.{key}": one for key, one in original(whole, "text_encoder").items()}}, path
    )
    expected = as_transformers(whole, "text_encoder")
    actual = as_transformers(folder, "text_encoder")
    assert all(torch.equal(actual[key], expected[key]) for key in expected)


# --- GGUF -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def packed(folder: Path) -> Path:
    pytest.importorskip("gguf")
    from scripts.evaluate_tiny.quantised_folder import write_gguf

    (folder / "MeiGen-MultiTalk" / "multitalk.safetensors").unlink()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    write_gguf(folder / "wan2.1-i2v-Q8_0.gguf", WEIGHTS)
    (folder / "audio").mkdir()
    write_gguf(folder / "audio" / "InfiniteTalk_Single_Q8.gguf", AUDIO)
    return folder


@pytest.mark.parametrize(
    "more",
    [{"adapter": ""}, {"adapter": "InfiniteTalk_Single_Q8.gguf"}, {"adapter": "", "file": "wan2.1-i2v-Q8_0.gguf"}],
)
def test_audio_weights_may_be_a_gguf_file_beside_a_base_in_gguf(packed: Path, more: dict[str, Any]) -> None:
    parts, missing = find_parts(
        packed, Weights(**(vars(WANTED) | {"components": ("transformer",), "quant": "gguf"} | more))
    )
    assert missing == ()
    assert [path.name for path in parts["transformer"].files] == ["wan2.1-i2v-Q8_0.gguf", "InfiniteTalk_Single_Q8.gguf"]
    state = read_part("transformer", parts["transformer"], torch.float32).state_dict()
    assert state.keys() == {to_engine(name) for name in STATE}


def test_audio_weights_in_gguf_that_are_not_the_models_are_told(packed: Path) -> None:
    with pytest.raises(
        SourceError, match=r"missing: multitalk\.safetensors; .*model\.adapter=audio/InfiniteTalk_Single_Q8\.gguf"
    ) as caught:
        Volume(VolumeConfig(path=str(packed.parent))).locate(Weights(**(vars(WANTED) | {"quant": "gguf"})))
    assert "copy them there" not in str(caught.value)


def test_audio_weights_in_gguf_lie_over_plain_ones(packed: Path) -> None:
    save(WEIGHTS, packed / "diffusion_models" / "wan.safetensors")
    parts, missing = find_parts(
        packed, Weights(**(vars(WANTED) | {"components": ("transformer",), "adapter": "InfiniteTalk_Single_Q8.gguf"}))
    )
    assert missing == ()
    assert parts["transformer"].files[-1].suffix == ".gguf"
    read_part("transformer", parts["transformer"], torch.float32)


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "_orig_mod.", "diffusion_model."])
def test_a_gguf_file_may_have_a_prefix(packed: Path, prefix: str) -> None:
    from scripts.evaluate_tiny.quantised_folder import write_gguf

    def read() -> dict[str, Tensor]:
        parts, missing = find_parts(
            packed, Weights(**(vars(WANTED) | {"components": ("transformer",), "quant": "gguf", "adapter": ""}))
        )
        assert missing == ()
        state: dict[str, Tensor] = read_part("transformer", parts["transformer"], torch.float32).state_dict()
        return state

    expected = read()
    write_gguf(packed / "wan2.1-i2v-Q8_0.gguf", {prefix + name: tensor for name, tensor in WEIGHTS.items()})
    actual = read()
    assert actual.keys() == expected.keys()
    assert all(torch.equal(torch.as_tensor(actual[key]), torch.as_tensor(expected[key])) for key in expected)


def test_bfloat16_in_a_gguf_file_is_read_as_numbers(packed: Path) -> None:
    import gguf

    writer = gguf.GGUFWriter(packed / "wan2.1-i2v-Q8_0.gguf", "wan")
    for name, tensor in WEIGHTS.items():
        values = tensor.bfloat16().float().numpy()
        if values.ndim > 4:
            writer.add_array(f"comfy.gguf.orig_shape.{name}", list(values.shape))
            values = values.reshape(values.shape[0], -1)
        kind = gguf.GGMLQuantizationType.BF16
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    state = transformer(packed, quant="gguf", adapter="")
    for name in ("patch_embedding.weight", "blocks.0.ffn.0.weight", "head.modulation"):
        assert torch.equal(state[to_engine(name)], WEIGHTS[name].bfloat16().float())
