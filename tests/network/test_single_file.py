"""The network alone, read from files as diffusers' classes are, and found by diffusers' own loaders."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from engine.errors import ConfigError, SourceError
from engine.loading.key_map import is_audio, to_reference
from engine.loading.single_file import sizes_of
from plugins.families.multitalk.transformer import MultiTalkTransformer3DModel

load = MultiTalkTransformer3DModel.from_single_file


@pytest.fixture(scope="module")
def state(tiny: Any) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {name: tensor.contiguous() for name, tensor in tiny.model().state_dict().items()}
    return weights


@pytest.fixture(scope="module")
def folder(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network as diffusers saves it."""
    where = tmp_path_factory.mktemp("model") / "transformer"
    tiny.model().save_pretrained(where)
    return where


def original(state: dict[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    return {prefix + to_reference(name): tensor for name, tensor in state.items()}


def hold_to(model: Any, state: dict[str, Tensor]) -> None:
    loaded = model.state_dict()
    assert loaded.keys() == state.keys()
    assert not [name for name, tensor in state.items() if not torch.equal(loaded[name], tensor)]
    assert not model.training


def test_a_file_of_diffusers_takes_its_config_from_beside_it(folder: Path, tiny: Any, state: dict[str, Tensor]) -> None:
    model = load(folder / "diffusion_pytorch_model.safetensors")

    hold_to(model, state)
    assert torch.equal(tiny.run(model), tiny.run(tiny.model()))


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_wans_own_files_are_read_with_audio_weights_beside_them(
    prefix: str, tiny: Any, state: dict[str, Tensor], tmp_path: Path
) -> None:
    files = tmp_path / "wan.safetensors", tmp_path / "multitalk.safetensors"
    for path, audio in zip(files, (False, True), strict=True):
        part = {name: tensor for name, tensor in state.items() if is_audio(name) == audio}
        save_file(original(part, prefix), path)

    hold_to(load(list(files), config=tiny.config), state)
    with pytest.raises(SourceError, match=r"no audio weights.*multitalk\.safetensors"):
        load(files[0], config=tiny.config)


def test_tensors_in_memory_are_copied(tiny: Any, state: dict[str, Tensor]) -> None:
    given = original(state)

    model = load(given, config=tiny.config)

    hold_to(model, state)
    assert model.proj_out.weight.data_ptr() != given[to_reference("proj_out.weight")].data_ptr()
    with pytest.raises(SourceError, match=r"lacks? proj_out\.weight"):
        load({name: tensor for name, tensor in state.items() if name != "proj_out.weight"}, config=tiny.config)


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_a_dtype_keeps_the_parts_in_float32_that_from_pretrained_keeps(name: str, folder: Path) -> None:
    expected = MultiTalkTransformer3DModel.from_pretrained(folder, torch_dtype=torch.float16)

    model = load(folder / "diffusion_pytorch_model.safetensors", **{name: torch.float16})

    assert model.dtype == torch.float16
    hold_to(model, expected.state_dict())
    for key, parameter in expected.named_parameters():
        assert model.get_parameter(key).dtype == parameter.dtype, key


def test_a_gguf_file_stays_packed_and_is_unpacked_in_the_dtype_of_diffusers_config(tiny: Any, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    from diffusers import GGUFQuantizationConfig
    from peft import LoraConfig

    from scripts.evaluate_tiny.quantised_folder import write_gguf

    # Packed rows have whole blocks of 32 values.
    changes = {"num_attention_heads": 2, "attention_head_dim": 32, "ffn_dim": 64}
    exact, path = tiny.model(**changes), tmp_path / "network.gguf"
    write_gguf(path, original(exact.state_dict()))

    model = load(
        path,
        config=tiny.config | changes,
        quantization_config=GGUFQuantizationConfig(compute_dtype=torch.bfloat16),
        dtype=torch.bfloat16,
    )

    assert model.blocks[0].attn1.to_q.weight.dtype == torch.uint8
    assert model.blocks[0].attn1.to_q.compute_dtype == torch.bfloat16
    given, wanted = tiny.run(model), tiny.run(exact)
    assert 0 < (given - wanted).norm() / wanted.norm() < 0.1
    model.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_out.0"], init_lora_weights=False))
    assert (tiny.run(model) - given).abs().max() > 1e-2


@pytest.mark.parametrize("device_map", ["meta", torch.device("meta"), {"": "meta"}], ids=["name", "device", "map"])
def test_a_device_map_of_one_device_is_the_device(device_map: Any, folder: Path) -> None:
    model = load(folder / "diffusion_pytorch_model.safetensors", device_map=device_map)

    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_published_sizes_are_told_by_the_shapes() -> None:
    from accelerate import init_empty_weights

    changed = {"num_layers": 2, "ffn_dim": 1024, "num_attention_heads": 3, "audio_tokens": 16, "image_dim": 64}
    with init_empty_weights():
        network = MultiTalkTransformer3DModel(**changed)

    sizes = sizes_of({name: tuple(tensor.shape) for name, tensor in network.named_parameters()})

    assert {name: network.config[name] for name in sizes} == sizes
    assert sizes.items() >= changed.items()


@pytest.mark.parametrize(
    ("arguments", "field", "hint"),
    [
        ({"pretrained_model_link_or_path_or_dict": "https://hub/wan.safetensors"}, "from_single_file", "download it"),
        ({"pretrained_model_link_or_path_or_dict": "nowhere.gguf"}, "from_single_file", "path of a file"),
        ({"pretrained_model_link_or_path_or_dict": []}, "from_single_file", "path of a file"),
        ({"pretrained_model_link_or_path_or_dict": "."}, "from_single_file", "from_pretrained"),
        ({"config": "nowhere.json"}, "config", r"config\.json of this network"),
        ({"config": {"attention_head_dim": 11}}, "config", "give config"),
        ({"quantization_config": {"quant_method": "torchao"}}, "quantization_config", "save_pretrained"),
        ({"original_config": "x"}, "from_single_file", "leave it out"),
        ({"device": "gpu"}, "device", "cuda:1"),
        ({"device_map": "auto"}, "device_map", "one device"),
        ({"device_map": {"blocks": "cpu"}}, "device_map", "one device"),
        ({"device": "cpu", "device_map": "cpu"}, "device, device_map", "one of them"),
    ],
    ids=[
        *("link", "missing", "none", "folder", "no config", "bad config", "other quantiser", "unknown argument"),
        *("no device", "split", "map of parts", "two devices"),
    ],
)
def test_what_cannot_be_read_names_the_argument(arguments: Any, field: str, hint: str, folder: Path) -> None:
    given = {"pretrained_model_link_or_path_or_dict": folder / "diffusion_pytorch_model.safetensors"} | arguments

    with pytest.raises((SourceError, ConfigError), match=hint) as caught:
        load(given.pop("pretrained_model_link_or_path_or_dict"), **given)

    assert caught.value.field == field


def test_a_file_without_config_and_of_unpublished_sizes_asks_for_one(folder: Path, tmp_path: Path) -> None:
    file = shutil.copy(folder / "diffusion_pytorch_model.safetensors", tmp_path)

    with pytest.raises(SourceError, match="give config="):
        load(file)


def test_automodel_finds_the_class_after_its_import(folder: Path, state: dict[str, Tensor]) -> None:
    from diffusers import AutoModel

    # diffusers 0.42 takes no Path here.
    for given in (
        {"pretrained_model_or_path": str(folder)},
        {"pretrained_model_or_path": str(folder.parent), "subfolder": "transformer"},
    ):
        model = AutoModel.from_pretrained(**given)
        assert type(model) is MultiTalkTransformer3DModel
        hold_to(model, state)


def test_a_pipeline_of_diffusers_saves_and_loads_the_network(
    tiny: Any, tmp_path: Path, state: dict[str, Tensor]
) -> None:
    from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler

    class Talking(DiffusionPipeline):  # type: ignore[misc]
        def __init__(self, transformer: Any, scheduler: Any) -> None:
            super().__init__()
            self.register_modules(transformer=transformer, scheduler=scheduler)

    Talking(tiny.model(), FlowMatchEulerDiscreteScheduler()).save_pretrained(tmp_path)

    loaded = Talking.from_pretrained(tmp_path)

    hold_to(loaded.transformer, state)
