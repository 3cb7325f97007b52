"""Folders of weights are told by what they hold; what is missing, mixed or damaged is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from original_folder import FILES, small_transformer, write_index, write_original
from safetensors.torch import load_file, save_file
from tiny_folder import build_text_encoder, build_transformer
from whole_tensors import read_part

from engine.data import Weights
from engine.errors import SourceError
from engine.loading.key_map import is_audio, to_engine
from engine.loading.layout import ComponentLayout, find_parts
from engine.loading.model import COMPONENTS
from engine.rehearsal.files import shard_name
from plugins.families.multitalk.model import load_multitalk
from plugins.sources.volume import Volume, VolumeConfig

WANTED = Weights("multitalk", "multitalk", COMPONENTS, adapter="multitalk.safetensors", commands=(("get them", ""),))
WAN = "Wan2.1-I2V-14B-480P"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_original(tmp_path_factory.mktemp("volume") / "multitalk")


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(whole, tmp_path / "multitalk"))


def find(folder: Path, **more: Any) -> dict[str, ComponentLayout]:
    parts, missing = find_parts(folder, Weights(**(vars(WANTED) | more)))
    assert missing == ()
    return parts


def transformer(folder: Path, **more: Any) -> dict[str, torch.Tensor]:
    parts = find(folder, components=("transformer",), **more)
    state: dict[str, torch.Tensor] = read_part("transformer", parts["transformer"], torch.float32).state_dict()
    return state


def hold_to(state: dict[str, torch.Tensor]) -> None:
    expected = {to_engine(name): tensor for name, tensor in small_transformer().items()}
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}


# --- layouts ----------------------------------------------------------------------------------------------------------


def test_layout_of_the_public_implementation_is_loaded_and_left_alone(whole: Path) -> None:
    before = contents(whole)

    model: Any = load_multitalk(whole, device="cpu", dtype="float32", wanted=WANTED)

    hold_to(model.transformer.state_dict())
    assert model.text.encode("a person speaks").shape == (1, 4, 16)
    assert model.image.encode(torch.zeros(3, 32, 32)).shape == (1, 257, 80)
    assert model.audio.encode(torch.zeros(16000), 25).shape == (25, 2, 16)
    assert model.codec.encode(torch.zeros(3, 5, 32, 32)).shape == (16, 2, 4, 4)
    assert not model.transformer.training
    assert contents(whole) == before


def beside_the_shards(folder: Path) -> None:
    """As MultiTalk's README has it: audio weights among Wan's shards, under an index over both."""
    audio = folder / WAN / "multitalk.safetensors"
    (folder / "MeiGen-MultiTalk" / "multitalk.safetensors").rename(audio)
    shards = {path.name: load_file(path) for path in (folder / WAN).glob("*.safetensors")}
    write_index(folder / WAN, shards)


def index_names_audio_elsewhere(folder: Path) -> None:
    shards = {path.name: load_file(path) for path in folder.rglob("*.safetensors") if "wav2vec2" not in str(path)}
    write_index(folder / WAN, shards)


def all_in_one_folder(folder: Path) -> None:
    for path in [*(folder / WAN).iterdir(), *(folder / "MeiGen-MultiTalk").iterdir()]:
        path.rename(folder / path.name)


def by_links(folder: Path) -> None:
    (folder.parent / "elsewhere").mkdir()
    for path in list(folder.rglob("*.safetensors")):
        target = folder.parent / "elsewhere" / f"{path.parent.name}-{path.name}"
        path.rename(target)
        path.symlink_to(target)


def stock_diffusers(folder: Path) -> None:
    """As Wan's repository for diffusers: a transformer that does not hear, beside MultiTalk's own file."""
    for path in (folder / WAN).glob("*.safetensors"):
        path.unlink()
    wan = {to_engine(name): tensor for name, tensor in small_transformer().items() if not is_audio(name)}
    own = build_transformer(image_dim=80, image_tokens=257)
    own.save_pretrained(folder / "transformer")
    save_file(wan, folder / "transformer" / "diffusion_pytorch_model.safetensors")
    config = folder / "transformer" / "config.json"
    told = json.loads(config.read_text()) | {"_class_name": "WanTransformer3DModel", "_diffusers_version": "0.35.0"}
    config.write_text(json.dumps(told))


@pytest.mark.parametrize(
    "arrange", [beside_the_shards, index_names_audio_elsewhere, all_in_one_folder, by_links, stock_diffusers]
)
def test_other_arrangements_of_the_same_files_are_the_same(arrange: Callable[[Path], None], folder: Path) -> None:
    arrange(folder)

    hold_to(transformer(folder))


def test_a_volume_with_that_layout_is_found_and_its_holes_are_named(folder: Path) -> None:
    source = Volume(VolumeConfig(path=str(folder.parent)))
    assert source.locate(WANTED) == folder

    (folder / WAN / shard_name(2, 3)).unlink()
    (folder / WAN / "Wan2.1_VAE.pth").write_bytes(b"")
    (folder / "MeiGen-MultiTalk" / "multitalk.safetensors").unlink()
    with pytest.raises(SourceError, match="incomplete") as caught:
        source.locate(WANTED)

    assert f"{WAN}/{shard_name(2, 3)}" in caught.value.what
    assert f"{WAN}/Wan2.1_VAE.pth" in caught.value.what
    assert caught.value.hint == "get them with: get them"


# --- what is missing --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gone", "told"),
    [
        (f"{WAN}/{shard_name(2, 3)}", f"{WAN}/{shard_name(2, 3)}"),
        ("MeiGen-MultiTalk/multitalk.safetensors", "multitalk.safetensors"),
        (f"{WAN}/{FILES['text_encoder']}", "text_encoder/model.safetensors"),
        (f"{WAN}/{FILES['image_encoder']}", "image_encoder/model.safetensors"),
        (f"{WAN}/{FILES['vae']}", "vae/diffusion_pytorch_model.safetensors"),
        (f"{WAN}/google/umt5-xxl/tokenizer_config.json", f"{WAN}/google/umt5-xxl/tokenizer_config.json"),
        ("chinese-wav2vec2-base/model.safetensors", "chinese-wav2vec2-base/model.safetensors"),
    ],
)
def test_a_missing_file_is_named(gone: str, told: str, folder: Path) -> None:
    (folder / gone).unlink()

    _, missing = find_parts(folder, WANTED)

    assert told in missing


def test_a_shard_the_index_names_is_missed(folder: Path) -> None:
    write_index(folder / WAN, {"tail.safetensors": ["blocks.0.norm3.weight"]})

    assert find_parts(folder, WANTED)[1] == (f"{WAN}/tail.safetensors",)


def test_unfinished_downloads_are_not_taken_for_weights(folder: Path) -> None:
    shard = folder / WAN / shard_name(3, 3)
    (folder / WAN / ".cache").mkdir()
    shard.rename(folder / WAN / ".cache" / shard.name)

    assert find_parts(folder, WANTED)[1] == (f"{WAN}/{shard.name}",)


def test_a_damaged_shard_is_named(folder: Path) -> None:
    shard = folder / WAN / shard_name(2, 3)
    shard.write_bytes(shard.read_bytes()[:-1])

    with pytest.raises(SourceError, match=f"{shard.name} is damaged"):
        find_parts(folder, WANTED)


def test_a_config_of_another_size_is_told_with_tensors(folder: Path) -> None:
    config = folder / WAN / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"ffn_dim": 64}))

    with pytest.raises(SourceError, match=r"have another shape of blocks\.0\.ffn"):
        transformer(folder)


def test_a_config_that_builds_no_network_is_named(folder: Path) -> None:
    config = folder / WAN / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_heads": 5}))

    with pytest.raises(SourceError, match=r"config\.json builds no transformer: a width of 24 is not divisible"):
        transformer(folder)


# --- what is there twice ----------------------------------------------------------------------------------------------


def test_two_formats_of_one_component_are_named(folder: Path) -> None:
    build_text_encoder().save_pretrained(folder / "text_encoder")

    with pytest.raises(SourceError, match=rf"more than one text_encoder: {WAN}/models_t5.*, text_encoder"):
        find_parts(folder, WANTED)


def test_two_bases_are_named(folder: Path) -> None:
    shutil.copytree(folder / WAN, folder / "Wan2.1-I2V-14B-720P")

    with pytest.raises(SourceError, match=rf"more than one transformer: {WAN}, Wan2\.1-I2V-14B-720P"):
        find_parts(folder, WANTED)


def test_a_quantised_file_beside_them_is_no_second_base(folder: Path) -> None:
    (folder / "quant_models").mkdir()
    packed = {
        "blocks.0.self_attn.q.weight._data": torch.zeros(2, 2, dtype=torch.int8),
        "patch_embedding.bias": torch.ones(2),
    }
    save_file(packed, folder / "quant_models" / "quant_model_int8.safetensors")

    parts, missing = find_parts(folder, WANTED)

    assert not missing
    assert parts["transformer"].files[0].parent == folder / WAN


def test_audio_weights_are_those_of_the_model(folder: Path) -> None:
    audio = folder / "MeiGen-MultiTalk" / "multitalk.safetensors"
    for kind in ("single", "multi"):
        (folder / kind).mkdir()
        shutil.copy(audio, folder / kind / "infinitetalk.safetensors")

    assert find(folder)["transformer"].files[-1] == audio
    with pytest.raises(
        SourceError, match=r"multi/infinitetalk\.safetensors, single/infinitetalk\.safetensors"
    ) as caught:
        find(folder, adapter="infinitetalk.safetensors")
    assert "model.adapter=" in caught.value.hint
    chosen = find(folder, adapter="multi/infinitetalk.safetensors")["transformer"]
    assert chosen.files[-1] == folder / "multi" / "infinitetalk.safetensors"


def test_a_tensor_that_two_files_hold_is_named(folder: Path) -> None:
    shard = folder / WAN / shard_name(1, 3)
    shutil.copy(shard, shard.with_name("again.safetensors"))

    with pytest.raises(SourceError, match="twice"):
        transformer(folder)


# --- of the encoder of voices -----------------------------------------------------------------------------------------


def test_an_audio_encoder_from_before_safetensors_is_read(whole: Path, folder: Path) -> None:
    hearing = folder / "chinese-wav2vec2-base"
    torch.save(load_file(hearing / "model.safetensors"), hearing / "pytorch_model.bin")
    (hearing / "model.safetensors").unlink()
    voice = torch.linspace(-1, 1, 16000).sin()

    now, then = (load_multitalk(root, device="cpu", dtype="float32", wanted=WANTED) for root in (folder, whole))

    assert torch.equal(now.audio.encode(voice, 25), then.audio.encode(voice, 25))
