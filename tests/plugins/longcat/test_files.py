"""LongCat's files: folders of the repositories, published tensors, int8, LoRA."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from longcat_recordings import replay
from safetensors.torch import load_file, save_file

from engine.errors import ConfigError, EngineError, SourceError
from plugins.families.longcat import folders, weights
from plugins.families.longcat.lora import read_lora, sort_lora
from plugins.families.longcat.lora_keys import DATA, SCALE
from plugins.families.longcat.sizes import published_config
from plugins.families.longcat.transformer import AvatarTransformer3DModel
from plugins.families.longcat.weights import load_transformer

TOLERANCE = 1e-4
D = 4096
#: Tensors of the published network: of a block, and outside of the blocks (source: docs of the recordings).
BLOCK = {
    "adaLN_modulation.1.weight": (24576, 512),
    "adaLN_modulation.1.bias": (24576,),
    "audio_adaLN_modulation.1.weight": (12288, 512),
    "audio_adaLN_modulation.1.bias": (12288,),
    "pre_crs_attn_norm.weight": (D,),
    "pre_crs_attn_norm.bias": (D,),
    "pre_video_crs_attn_norm.weight": (D,),
    "pre_video_crs_attn_norm.bias": (D,),
    "attn.qkv.weight": (12288, D),
    "attn.qkv.bias": (12288,),
    "attn.proj.weight": (D, D),
    "attn.proj.bias": (D,),
    "attn.q_norm.weight": (128,),
    "attn.k_norm.weight": (128,),
    "cross_attn.q_linear.weight": (D, D),
    "cross_attn.q_linear.bias": (D,),
    "cross_attn.proj.weight": (D, D),
    "cross_attn.proj.bias": (D,),
    "cross_attn.kv_linear.weight": (8192, D),
    "cross_attn.kv_linear.bias": (8192,),
    "cross_attn.q_norm.weight": (128,),
    "cross_attn.k_norm.weight": (128,),
    "audio_cross_attn.q_linear.weight": (D, D),
    "audio_cross_attn.q_linear.bias": (D,),
    "audio_cross_attn.proj.weight": (D, D),
    "audio_cross_attn.proj.bias": (D,),
    "audio_cross_attn.kv_linear.weight": (8192, 768),
    "audio_cross_attn.kv_linear.bias": (8192,),
    "audio_cross_attn.q_norm.weight": (128,),
    "audio_cross_attn.k_norm.weight": (128,),
    "ffn.w1.weight": (11008, D),
    "ffn.w3.weight": (11008, D),
    "ffn.w2.weight": (D, 11008),
}


def root(features: int) -> dict[str, tuple[int, ...]]:
    layers: dict[str, tuple[int, int]] = {
        "t_embedder.mlp.0": (512, 256),
        "t_embedder.mlp.2": (512, 512),
        "y_embedder.y_proj.0": (D, D),
        "y_embedder.y_proj.2": (D, D),
        "audio_proj.proj1": (512, 5 * features),
        "audio_proj.proj1_vf": (512, 8 * features),
        "audio_proj.proj2": (512, 512),
        "audio_proj.proj3": (24576, 512),
        "final_layer.adaLN_modulation.1": (8192, 512),
        "final_layer.linear": (64, D),
    }
    single: dict[str, tuple[int, ...]] = {"x_embedder.proj.weight": (D, 16, 1, 2, 2), "x_embedder.proj.bias": (D,)}
    single |= {"audio_proj.norm.weight": (768,), "audio_proj.norm.bias": (768,)}
    single |= {f"{name}.weight": shape for name, shape in layers.items()}
    return single | {f"{name}.bias": shape[:1] for name, shape in layers.items()}


def published(version: str) -> dict[str, tuple[int, ...]]:
    blocks = {f"blocks.{index}.{name}": shape for index in range(48) for name, shape in BLOCK.items()}
    return blocks | root({"1.0": 12 * 768, "1.5": 5 * 1280}[version])


def save(folder: Path, config: dict[str, Any], tensors: dict[str, Any], stem: str = folders.STEMS[0]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: part.contiguous() for name, part in tensors.items()}, folder / f"{stem}.safetensors")
    return folder


def dense(longcat: Any, folder: Path, name: str = "model_A") -> Path:
    return save(folder, longcat.config(name), longcat.tensors(name))


def int8(longcat: Any, folder: Path) -> Path:
    name = longcat.model_name("quant_int8_model")
    return save(folder, longcat.config(name), longcat.tensors("quant_int8_model"), folders.STEMS[1])


# --- published sizes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "parameters"), [("1.0", 15_871_660_096), ("1.5", 15_852_916_800)])
def test_every_published_tensor_is_in_the_network_with_its_name_and_shape(version: str, parameters: int) -> None:
    with torch.device("meta"):
        model = AvatarTransformer3DModel(**published_config(version))

    found = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}

    assert found == published(version)
    assert len(found) == 1608
    assert sum(map(math.prod, found.values())) == parameters


def test_the_defaults_are_the_published_model() -> None:
    with torch.device("meta"):
        model = AvatarTransformer3DModel(depth=1)

    assert {**model.config, "depth": 48}.items() >= {
        **published_config("1.5"),
        "patch_size": model.config["patch_size"],
    }.items()


def test_int8_tensors_have_the_published_number_of_bytes() -> None:
    """The file of 15 880 382 936 bytes is these tensors and the headers of four files."""
    total = 0
    with torch.device("meta"):
        model = AvatarTransformer3DModel(**published_config("1.5"))
    quantised = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "final_layer.linear"
    }
    for name, shape in published("1.5").items():
        total += math.prod(shape) + 4 * shape[0] if name in quantised else 2 * math.prod(shape)

    assert total == 15_880_145_024


# --- folders ----------------------------------------------------------------------------------------------------------


def fill(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


BASE = (
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/tokenizer_config.json",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
)
OWN = (
    "base_model_int8/config.json",
    "base_model_int8/quantized_model.safetensors",
    "lora/dmd_lora.safetensors",
    "whisper-large-v3/config.json",
    "whisper-large-v3/model.safetensors",
)


@pytest.mark.parametrize("apart", [False, True])
def test_components_are_found_in_one_folder_or_in_one_for_each_repository(tmp_path: Path, apart: bool) -> None:
    own, base = (tmp_path / "LongCat-Video-Avatar-1.5", tmp_path / "LongCat-Video") if apart else (tmp_path, tmp_path)
    fill(own, *OWN)
    fill(base, *BASE)

    found, missing = folders.find_folders(tmp_path, "1.5", int8=True)

    assert missing == ()
    assert found is not None
    assert found.transformer == own / "base_model_int8"
    assert found.lora == own / "lora" / "dmd_lora.safetensors"
    assert found.vae == base / "vae"


def test_missing_files_are_named_shard_by_shard(tmp_path: Path) -> None:
    fill(tmp_path, *BASE[1:], *OWN, "base_model/config.json")
    shards = {"a": "diffusion_pytorch_model-00001-of-00002.safetensors", "b": "second.safetensors"}
    index = tmp_path / "base_model" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": shards}))
    fill(tmp_path, "base_model/second.safetensors")

    found, missing = folders.find_folders(tmp_path, "1.5", distilled=False)

    assert found is None
    assert set(missing) == {f"base_model/{shards['a']}", "text_encoder/config.json"}


@pytest.mark.parametrize("speakers", [1, 2])
def test_version_1_0_has_a_network_for_one_speaker_and_one_for_two(tmp_path: Path, speakers: int) -> None:
    name = "avatar_single" if speakers == 1 else "avatar_multi"
    fill(tmp_path, *BASE, f"{name}/config.json", f"{name}/diffusion_pytorch_model.safetensors")
    fill(tmp_path, "chinese-wav2vec2-base/config.json", "chinese-wav2vec2-base/pytorch_model.bin")

    found, missing = folders.find_folders(tmp_path, "1.0", speakers=speakers, distilled=False)

    assert missing == ()
    assert found is not None
    assert (found.transformer.name, found.lora) == (name, None)


@pytest.mark.parametrize("choice", [{"int8": True, "distilled": False}, {"distilled": True}])
def test_what_is_not_published_for_version_1_0_is_refused(tmp_path: Path, choice: dict[str, bool]) -> None:
    with pytest.raises(ConfigError, match=r"of 1\.0"):
        folders.find_folders(tmp_path, "1.0", **choice)


@pytest.mark.parametrize("text", ["{", '{"weight_map": {"a": "../b.safetensors"}}', '{"weight_map": []}'])
def test_an_index_that_cannot_be_trusted_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "diffusion_pytorch_model.safetensors.index.json").write_text(text)

    with pytest.raises(SourceError):
        folders.weight_files(tmp_path, folders.STEMS[0])


# --- weights ----------------------------------------------------------------------------------------------------------


def test_a_dense_folder_gives_the_recorded_forward(longcat_home: Any, tmp_path: Path) -> None:
    model: Any = load_transformer(dense(longcat_home, tmp_path), torch.float32)
    played = replay(longcat_home, "forward_a_single", model)

    torch.testing.assert_close(played.run(), played.expected, atol=TOLERANCE, rtol=0)


def test_prefixes_of_tools_and_shards_change_nothing(longcat_home: Any, tmp_path: Path) -> None:
    tensors = longcat_home.tensors("model_A")
    first = {f"model.diffusion_model.{name}": part for name, part in tensors.items() if "blocks.0" in name}
    second = {name: part for name, part in tensors.items() if "blocks.0" not in name}
    save(tmp_path, longcat_home.config("model_A"), first, "one")
    save(tmp_path, longcat_home.config("model_A"), second, "two")
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (tmp_path / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))

    model: Any = load_transformer(tmp_path, torch.float32)

    assert all(torch.equal(model.get_parameter(name), part) for name, part in tensors.items())


@pytest.mark.parametrize("keep", [False, True])
def test_an_int8_folder_gives_the_recorded_forward(longcat: Any, tmp_path: Path, keep: bool) -> None:
    if keep:
        pytest.importorskip("torchao")
    longcat = longcat.of("quant_int8_forward")
    model: Any = load_transformer(int8(longcat, tmp_path), torch.float32, keep_int8=keep)
    played = replay(longcat, longcat.header("quant_int8_forward")["inputs"], model)
    expected = longcat.tensors("quant_int8_forward")["out"][:, :, played.layout.given :]

    torch.testing.assert_close(played.run(), expected, atol=TOLERANCE, rtol=0)
    assert hasattr(model.blocks[0].attn.qkv.weight, "qdata") == keep
    assert hasattr(model.blocks[0].adaLN_modulation[1].weight, "qdata") == keep


def test_int8_weights_are_multiplied_before_they_are_rounded(longcat_home: Any, tmp_path: Path) -> None:
    """Declined quirk: the reference rounds scales to bfloat16 first, which doubles the error of rounding."""
    tensors = longcat_home.tensors("quant_int8_model")
    model: Any = load_transformer(int8(longcat_home, tmp_path), torch.bfloat16, keep_int8=False)
    name = "blocks.0.attn.qkv"

    exact = tensors[name + DATA].float() * tensors[name + SCALE][:, None]

    assert torch.equal(model.get_parameter(f"{name}.weight"), exact.bfloat16())


def test_tensors_that_do_not_fit_the_config_are_named(longcat_home: Any, tmp_path: Path) -> None:
    whole, small = longcat_home.tensors("model_A"), longcat_home.tensors("quant_int8_model")
    name = "blocks.1.attn.qkv"
    broken = (
        ({key: part for key, part in whole.items() if key != f"{name}.weight"}, 0, f"{name}.weight"),
        (whole | {"blocks.9.extra": torch.zeros(1)}, 0, "blocks.9.extra"),
        (whole | {f"{name}.weight": torch.zeros(1, 1)}, 0, f"{name}.weight"),
        ({key: part for key, part in small.items() if key != name + SCALE}, 1, name + SCALE),
        (small | {name + SCALE: torch.ones(3)}, 1, name + SCALE),
    )
    for index, (tensors, stem, named) in enumerate(broken):
        folder = save(tmp_path / str(index), longcat_home.config("model_A"), tensors, folders.STEMS[stem])
        with pytest.raises(SourceError, match=named):
            load_transformer(folder, torch.float32)


def test_a_folder_without_its_weights_or_with_a_broken_config_is_refused(longcat_home: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(SourceError, match="missing"):
        weights.find_stored(tmp_path)
    dense(longcat_home, tmp_path)
    for text in ("{", json.dumps({"hidden_size": "wide"}), json.dumps({"num_heads": 5})):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(SourceError, match="builds no transformer"):
            load_transformer(tmp_path, torch.float32)


# --- LoRA -------------------------------------------------------------------------------------------------------------


def original(longcat: Any, folder: Path) -> Path:
    """Save the model that the recorded LoRA changes."""
    return dense(longcat, folder, longcat.model_name(longcat.header("lora_forward")["inputs"]))


def changed_by_lora(longcat: Any, model: Any) -> None:
    played = replay(longcat, longcat.header("lora_forward")["inputs"], model)
    expected = longcat.tensors("lora_forward")["out"][:, :, played.layout.given :]

    torch.testing.assert_close(played.run(), expected, atol=TOLERANCE, rtol=0)


def test_a_merged_lora_gives_the_recorded_forward(longcat: Any, tmp_path: Path) -> None:
    longcat = longcat.of("lora_forward")
    lora = read_lora(longcat.path("lora_in.safetensors"))
    multiplier = float(longcat.header("lora_forward")["multiplier"])

    model: Any = load_transformer(original(longcat, tmp_path), torch.float32, lora=lora, multiplier=multiplier)

    changed_by_lora(longcat, model)


def test_an_attached_lora_gives_the_recorded_forward_and_keeps_the_weights(longcat: Any, tmp_path: Path) -> None:
    longcat = longcat.of("lora_forward")
    lora = read_lora(longcat.path("lora_in.safetensors"))
    model: Any = load_transformer(original(longcat, tmp_path), torch.float32)
    before = model.blocks[0].attn.qkv.weight.clone()

    lora.attach(model, multiplier=float(longcat.header("lora_forward")["multiplier"]))

    changed_by_lora(longcat, model)
    assert torch.equal(model.blocks[0].attn.qkv.base_layer.weight, before)


def test_a_lora_beside_int8_weights_is_that_beside_dense_ones(longcat_home: Any, tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    lora = read_lora(longcat_home.path("lora_in.safetensors"))
    samples = []
    for keep in (False, True):
        model: Any = load_transformer(int8(longcat_home, tmp_path), torch.float32, keep_int8=keep)
        lora.attach(model, multiplier=0.7)
        samples.append(replay(longcat_home, "forward_a_single", model).run())

    torch.testing.assert_close(samples[0], samples[1], atol=TOLERANCE, rtol=0)


def test_a_lora_merged_into_int8_weights_makes_them_dense(longcat_home: Any, tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    lora = read_lora(longcat_home.path("lora_in.safetensors"))

    model: Any = load_transformer(int8(longcat_home, tmp_path), torch.float32, lora=lora)

    assert not hasattr(model.blocks[0].attn.qkv.weight, "qdata")
    assert hasattr(model.blocks[0].cross_attn.proj.weight, "qdata")


def test_each_part_of_a_fused_layer_changes_its_own_outputs() -> None:
    name = "lora___lorahyphen___attn___lorahyphen___qkv"
    ups = [torch.randn(4, 2) for _ in range(3)]
    down = torch.randn(6, 5)
    tensors = {f"{name}.lora_up.blocks.{index}.weight": up for index, up in enumerate(ups)}

    lora = sort_lora(tensors | {f"{name}.lora_down.weight": down, f"{name}.alpha_scale": torch.tensor(0.5)})

    expected = 0.5 * torch.cat([up @ down[2 * index : 2 * index + 2] for index, up in enumerate(ups)])
    pair = lora.pairs["attn.qkv"]
    torch.testing.assert_close(lora.delta("attn.qkv.weight"), expected)
    torch.testing.assert_close(pair.up() @ pair.down, expected)


def test_a_lora_that_does_not_fit_is_refused(longcat_home: Any, avatar: Any, tmp_path: Path) -> None:
    tensors = load_file(longcat_home.path("lora_in.safetensors"))
    name = next(key.removesuffix(".alpha_scale") for key in tensors if key.endswith("qkv.alpha_scale"))
    without = {key: part for key, part in tensors.items() if key != f"{name}.lora_up.blocks.1.weight"}
    for broken in (
        without,
        {key: part for key, part in tensors.items() if key != f"{name}.lora_down.weight"},
        tensors | {f"{name}.lora_up.weight": torch.zeros(3, 3)},
        tensors | {"lora___lorahyphen___x.dora_scale": torch.zeros(1)},
        {"blocks.0.attn.qkv.lora_A.weight": torch.zeros(1, 1)},
    ):
        with pytest.raises(SourceError):
            sort_lora(broken)
    with pytest.raises(SourceError, match="does not fit"):
        sort_lora(tensors).check(avatar.model())
    with pytest.raises(SourceError, match="does not have"):
        sort_lora({key.replace("qkv", "kqv"): part for key, part in tensors.items()}).check(
            longcat_home.model("model_A")
        )
    (tmp_path / "damaged.safetensors").write_bytes(b"no")
    with pytest.raises(EngineError):
        read_lora(tmp_path / "damaged.safetensors")
