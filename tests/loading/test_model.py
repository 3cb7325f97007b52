"""Loading: a folder becomes a model, and whatever is wrong with the folder is named."""

from __future__ import annotations

import json
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from steering import make_quantiser
from tiny_folder import SIZES, write_folder
from torch import Tensor, nn

from engine.errors import RequestError, SourceError, UnknownComponent
from engine.loading.component_files import ComponentFiles
from engine.loading.layout import part_in
from engine.loading.model import COMPONENTS, Model
from engine.loading.placement import Profile, stream_blocks
from engine.loading.safetensors_reader import AheadReader
from plugins.families.multitalk.model import load_multitalk
from plugins.families.multitalk.transformer import MultiTalkTransformer3DModel

SHAPE = (2, 4, 4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def broken(folder: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(folder, tmp_path / "weights"))


@pytest.fixture(scope="module")
def loras(folder: Path) -> list[Path]:
    generator = torch.Generator().manual_seed(0)
    paths = []
    for name in ("one", "two"):
        paths.append(folder / f"{name}.safetensors")
        save_file(
            {
                "diffusion_model.blocks.0.self_attn.q.lora_down.weight": torch.randn(2, 24, generator=generator),
                "diffusion_model.blocks.0.self_attn.q.lora_up.weight": torch.randn(24, 2, generator=generator),
                "diffusion_model.blocks.1.norm3.diff": torch.randn(24, generator=generator),
                "diffusion_model.blocks.0.diff_m": 0.1 * torch.randn(1, 6, 24, generator=generator),
                "diffusion_model.head.diff_m": 0.1 * torch.randn(1, 2, 24, generator=generator),
            },
            paths[-1],
        )
    return paths


def load(folder: Path, **more: Any) -> Model:
    made = {"quantiser": make_quantiser(more.get("quant", "none"))}
    return load_multitalk(folder, **({"device": "cpu", "dtype": "float32"} | made | more))


def forward(model: Model) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    text = torch.randn(1, 4, SIZES["text_dim"], generator=generator)
    image = torch.randn(1, SIZES["image_tokens"], SIZES["image_dim"], generator=generator)
    latents = torch.randn(1, 36, *SHAPE, generator=generator)
    with torch.no_grad():
        conditions = model.transformer.embed_conditions(SHAPE, text, image)
        sample: Tensor = model.transformer(latents, torch.tensor([500.0]), conditions=conditions).sample
    return sample


def test_the_parts_fit_together(folder: Path) -> None:
    model = load(folder)

    assert forward(model).isfinite().all()
    assert model.text.encode("a person speaks").shape == (1, 4, SIZES["text_dim"])
    assert model.image.encode(torch.zeros(3, 32, 32)).shape == (1, SIZES["image_tokens"], SIZES["image_dim"])
    assert model.audio.encode(torch.zeros(16000), 25).shape == (25, SIZES["audio_layers"], SIZES["audio_channels"])
    assert model.codec.encode(torch.zeros(3, 5, 32, 32)).shape == (16, 2, 4, 4)
    assert not model.transformer.training


def test_weights_are_those_of_the_files(folder: Path) -> None:
    state = load(folder).transformer.state_dict()

    saved = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    assert state.keys() == saved.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in saved.items())


def test_weights_in_several_files_are_read_without_bars(broken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from diffusers import AutoencoderKLWan

    vae = AutoencoderKLWan.from_pretrained(broken / "vae")
    (broken / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    vae.save_pretrained(broken / "vae", max_shard_size=20_000)
    assert len(list((broken / "vae").glob("*.safetensors"))) > 1
    capsys.readouterr()
    load(broken).close()
    assert capsys.readouterr().err == ""


def test_bfloat16_keeps_the_sensitive_parts_and_the_other_encoders(folder: Path) -> None:
    model: Any = load(folder, dtype="bfloat16")

    assert model.transformer.blocks[0].ffn.net[2].weight.dtype == torch.bfloat16
    assert model.transformer.condition_embedder.time_proj.weight.dtype == torch.float32
    assert model.text.model.dtype == torch.bfloat16
    assert model.codec.vae.dtype == torch.float32
    assert model.audio.model.dtype == torch.float32


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_parts_are_those_that_the_libraries_load(dtype: str, folder: Path) -> None:
    from diffusers import AutoencoderKLWan
    from transformers import CLIPVisionModel, UMT5EncoderModel

    from plugins.families.multitalk.transformer import MultiTalkTransformer3DModel

    model: Any = load(folder, dtype=dtype)
    kind = {"float32": torch.float32, "bfloat16": torch.bfloat16}[dtype]
    pairs = (
        (model.transformer, MultiTalkTransformer3DModel.from_pretrained(folder / "transformer", torch_dtype=kind)),
        (model.codec.vae, AutoencoderKLWan.from_pretrained(folder / "vae")),
        (model.text.model, UMT5EncoderModel.from_pretrained(folder / "text_encoder", dtype=kind)),
        (model.image.model, CLIPVisionModel.from_pretrained(folder / "image_encoder", dtype=kind)),
    )

    for ours, theirs in pairs:
        for one, other in ((ours.state_dict(), theirs.state_dict()), (buffers(ours), buffers(theirs))):
            assert one.keys() == other.keys()
            assert all(
                torch.equal(one[name], tensor) and one[name].dtype == tensor.dtype for name, tensor in other.items()
            )
    assert model.text.model.encoder.embed_tokens.weight is model.text.model.shared.weight


@pytest.mark.parametrize("name", ["transformer", "vae", "text_encoder", "image_encoder"])
def test_size_in_memory_is_known_before_anything_is_read(name: str, folder: Path) -> None:
    part = ComponentFiles(part_in(folder / name, name), name, torch.bfloat16, network=MultiTalkTransformer3DModel)
    module = part.read(AheadReader(), "cpu")

    # A tensor of two names counts once.
    assert part.size == sum(parameter.nbytes for parameter in module.parameters())


def test_quantised_layers_count_as_they_are_kept(folder: Path) -> None:
    part = part_in(folder / "transformer", "transformer")
    full, quantised = (
        ComponentFiles(part, "transformer", torch.bfloat16, kept=kept, network=MultiTalkTransformer3DModel)
        for kept in (None, 1)
    )
    linears = [module for name, module in full.read(AheadReader(), "cpu").named_modules() if "blocks." in name]

    saved = sum(module.weight.numel() for module in linears if isinstance(module, nn.Linear))
    assert full.size - quantised.size == saved


def test_auto_says_what_it_picked_and_why(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        model = load(folder, memory=Profile("auto"))

    assert model.memory == "none"
    assert f"memory=auto chose none: {model.reason}" in caplog.text
    assert "free in this machine's memory" in model.reason


def buffers(module: nn.Module) -> dict[str, Tensor]:
    return dict(module.named_buffers())


def test_int8_stays_near(folder: Path) -> None:
    pytest.importorskip("torchao")
    exact, near = forward(load(folder)), forward(load(folder, quant="int8"))

    assert not torch.equal(exact, near)
    assert (near - exact).norm() / exact.norm() < 0.05


@pytest.mark.parametrize("memory", ["text-offload", "model-offload", "group-offload", "lowest"])
def test_memory_profiles_compute_the_same(memory: str, folder: Path) -> None:
    model = load(folder, memory=Profile(memory))

    with model.use("transformer"):
        assert torch.equal(forward(model), forward(load(folder)))
    model.close()


def test_lowest_leaves_nothing_of_a_part_in_memory(folder: Path) -> None:
    model: Any = load(folder, memory=Profile("lowest"))
    parts: dict[str, Callable[[], nn.Module]] = {
        "text_encoder": lambda: model.text.model,
        "vae": lambda: model.codec.vae,
        "image_encoder": lambda: model.image.model,
        "transformer": lambda: model.transformer,
    }

    for name, part in parts.items():
        with model.use(name):
            tensors = [weakref.ref(parameter) for parameter in part().parameters()]
            assert not any(parameter.is_meta for parameter in part().parameters())
        with model.use("text_encoder" if name == "transformer" else "transformer"):
            assert len(tensors) > 1
            assert not any(tensor() is not None for tensor in tensors), name
    with model.use("vae"):
        assert model.codec.encode(torch.zeros(3, 5, 32, 32)).shape == (16, 2, 4, 4)
    model.close()
    assert model.codec.vae is None


@pytest.mark.parametrize("mode", ["runtime", "merged"])
def test_loras_stay_while_the_network_is_released_and_read_again(mode: str, folder: Path, loras: list[Path]) -> None:
    model: Any = load(folder, memory=Profile("lowest"), loras=[(loras[0], 1.0)], lora_mode=mode)
    model.set_loras([(loras[0], 1.0)])
    with model.use("transformer"):
        first = forward(model)
    with model.use("text_encoder"):
        assert model.transformer is None

    with model.use("transformer"):
        assert torch.equal(forward(model), first)
    assert not torch.equal(first, forward(load(folder)))


# --- LoRA -------------------------------------------------------------------------------------------------------------


def test_runtime_loras_are_switched_for_each_request(folder: Path, loras: list[Path]) -> None:
    model = load(folder, loras=[(path, 1.0) for path in loras])
    bare = forward(load(folder))

    assert torch.equal(forward(model), bare)
    model.set_loras([(loras[0], 1.0)])
    first = forward(model)
    model.set_loras([(loras[1], 1.0)])
    second = forward(model)
    model.set_loras([(loras[0], 0.5)])
    half = forward(model)
    model.set_loras([])

    assert len({float(output.sum()) for output in (bare, first, second, half)}) == 4
    assert torch.equal(forward(model), bare)


@pytest.fixture(scope="module")
def full_lora(folder: Path) -> Path:
    """As distilled LoRAs are: pairs, and changes of weights and biases, on layers that int8 stores."""
    generator = torch.Generator().manual_seed(1)
    path = folder / "full.safetensors"
    save_file(
        {
            f"diffusion_model.blocks.{block}.{name}": 0.2 * torch.randn(shape, generator=generator)
            for block in range(2)
            for name, shape in {
                "self_attn.q.lora_down.weight": (2, 24),
                "self_attn.q.lora_up.weight": (24, 2),
                "self_attn.q.diff_b": (24,),
                "self_attn.k.diff_b": (24,),
                "self_attn.o.diff": (24, 24),
                "norm3.diff": (24,),
            }.items()
        },
        path,
    )
    return path


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("memory", ["none", "group-offload"])
@pytest.mark.parametrize("quant", ["none", "int8"])
def test_a_runtime_lora_works_on_every_kind_of_network(
    quant: str, memory: str, dtype: str, folder: Path, full_lora: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a CPU nothing is streamed.
    monkeypatch.setattr("engine.loading.placement.transformer_mover", stream_blocks)
    if quant == "int8":
        pytest.importorskip("torchao")
    expected = forward(load(folder, loras=[(full_lora, 0.7)], lora_mode="merged"))
    model = load(folder, quant=quant, memory=Profile(memory), dtype=dtype, loras=[(full_lora, 0.7)])

    outputs = []
    with model.use("transformer"):
        for active in ([], [(full_lora, 0.7)], []):
            model.set_loras(active)
            outputs.append(forward(model))

    assert torch.equal(outputs[0], outputs[2])
    assert (outputs[1] - expected).norm() / expected.norm() < (0.02 if quant == "int8" or dtype == "bfloat16" else 1e-5)
    assert (outputs[0] - expected).norm() / expected.norm() > 0.05


def test_a_change_of_a_bias_costs_no_second_weight(folder: Path, full_lora: Path) -> None:
    model = load(folder, loras=[(full_lora, 1.0)])
    layer: Any = model.transformer.get_submodule("blocks.0.attn1.to_k")

    (hook,) = layer._forward_hooks.values()
    branches = [cell.cell_contents for cell in hook.__closure__ or () if isinstance(cell.cell_contents, nn.Module)]

    assert [parameter.shape for branch in branches for parameter in branch.parameters()] == [(24,)]


@pytest.mark.parametrize("mode", ["runtime", "merged"])
def test_what_a_lora_does_not_reach_is_told(
    mode: str, folder: Path, loras: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    partly, foreign = tmp_path / "partly.safetensors", tmp_path / "foreign.safetensors"
    unknown = {"diffusion_model.blocks.99.norm3.diff": torch.zeros(24), "text.lora_up.weight": torch.zeros(2, 2)}
    save_file(load_file(loras[0]) | unknown, partly)
    save_file(unknown, foreign)

    load(folder, loras=[(partly, 1.0)], lora_mode=mode)

    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "2 of 7 entries of partly.safetensors match no tensor" in warning
    assert all(name in warning for name in unknown)
    with pytest.raises(SourceError, match="no entry of the LoRA matches"):
        load(folder, loras=[(foreign, 1.0)], lora_mode=mode)


@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_merged_equals_runtime(scale: float, folder: Path, loras: list[Path]) -> None:
    active = [(path, scale) for path in loras]
    runtime, merged = load(folder, loras=active), load(folder, loras=active, lora_mode="merged")
    runtime.set_loras(active)
    merged.set_loras(active)

    torch.testing.assert_close(forward(merged), forward(runtime), atol=1e-4, rtol=1e-4)


def test_merged_loras_cannot_be_taken_back(folder: Path, loras: list[Path]) -> None:
    model = load(folder, loras=[(loras[0], 1.0)], lora_mode="merged")

    for expected in ([], [(loras[1], 1.0)], [(loras[0], 0.5)]):
        with pytest.raises(RequestError, match=r"one.safetensors is merged"):
            model.set_loras(expected)


@pytest.mark.parametrize("mode", ["runtime", "merged"])
def test_a_lora_that_was_not_loaded_is_refused(mode: str, folder: Path, loras: list[Path]) -> None:
    with pytest.raises(RequestError, match=r"two.safetensors"):
        load(folder, lora_mode=mode).set_loras([(loras[1], 1.0)])


def test_a_missing_or_damaged_lora_is_named(folder: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"nothing")

    for path in (tmp_path / "absent.safetensors", damaged):
        with pytest.raises(SourceError, match=path.name):
            load(folder, loras=[(path, 1.0)])


# --- what can be wrong with a folder ----------------------------------------------------------------------------------


def weights(folder: Path, component: str) -> Path:
    return next((folder / component).glob("*.safetensors"))


def change(path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    told = json.loads(path.read_text())
    edit(told)
    path.write_text(json.dumps(told))


def change_tensors(path: Path, edit: Callable[[dict[str, Tensor]], Any]) -> None:
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, {"format": "pt"})


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="absent"):
        load(tmp_path / "absent")


@pytest.mark.parametrize("component", COMPONENTS)
def test_a_missing_component_is_named(component: str, broken: Path) -> None:
    shutil.rmtree(broken / component)

    with pytest.raises(SourceError, match=f"lacks {component}/"):
        load(broken)


WITH_WEIGHTS = [component for component in COMPONENTS if component != "tokenizer"]


@pytest.mark.parametrize("component", WITH_WEIGHTS)
def test_a_file_cut_short_is_named(component: str, broken: Path) -> None:
    path = weights(broken, component)
    path.write_bytes(path.read_bytes()[:-7])

    with pytest.raises(SourceError, match=f"{component}/{path.name} is damaged"):
        load(broken)


@pytest.mark.parametrize("component", COMPONENTS)
def test_a_config_that_is_no_json_is_named(component: str, broken: Path) -> None:
    name = "tokenizer_config.json" if component == "tokenizer" else "config.json"
    (broken / component / name).write_text("{")

    with pytest.raises(SourceError, match=f"{component}/{name} cannot be read"):
        load(broken)


@pytest.mark.parametrize("component", WITH_WEIGHTS)
def test_a_missing_tensor_is_named(component: str, broken: Path) -> None:
    path = weights(broken, component)
    gone: list[str] = []

    def drop(tensors: dict[str, Tensor]) -> None:
        gone.append(sorted(name for name in tensors if tensors[name].ndim == 2 and "shared" not in name)[0:1][0])
        del tensors[gone[0]]

    if component == "vae":
        gone.append("decoder.conv_in.bias")
        change_tensors(path, lambda tensors: tensors.pop(gone[0]))
    else:
        change_tensors(path, drop)

    with pytest.raises(SourceError, match=rf"{component} lacks .*{gone[0].rpartition('.')[0].split('.')[-1]}"):
        load(broken)


@pytest.mark.parametrize("component", WITH_WEIGHTS)
def test_an_unknown_tensor_is_named(component: str, broken: Path) -> None:
    change_tensors(weights(broken, component), lambda tensors: tensors.update(stranger=torch.zeros(2)))

    with pytest.raises(SourceError, match=f"{component} has the unknown stranger"):
        load(broken)


@pytest.mark.parametrize("component", WITH_WEIGHTS)
def test_a_tensor_of_another_shape_is_told(component: str, broken: Path) -> None:
    def widen(tensors: dict[str, Tensor]) -> None:
        name = next(name for name in sorted(tensors) if name.endswith(("bias", "layer_norm.weight")))
        tensors[name] = torch.zeros(tensors[name].numel() + 1)

    change_tensors(weights(broken, component), widen)

    with pytest.raises(SourceError, match=component):
        load(broken)


def rename(path: Path, new: Callable[[str], str]) -> None:
    save_file({new(name): tensor for name, tensor in load_file(path).items()}, path, {"format": "pt"})


def test_names_of_older_checkpoints_are_understood(folder: Path, broken: Path) -> None:
    def older(name: str) -> str:
        name = name.replace("parametrizations.weight.original0", "weight_g")
        return "wav2vec2." + name.replace("parametrizations.weight.original1", "weight_v")

    rename(weights(broken, "audio_encoder"), older)
    rename(weights(broken, "image_encoder"), lambda name: name if "vision_model." in name else f"vision_model.{name}")
    now, then = load(folder), load(broken)
    voice, pixels = torch.linspace(-1, 1, 16000).sin(), torch.linspace(-1, 1, 3 * 32 * 32).view(3, 32, 32)

    assert torch.equal(then.audio.encode(voice, 25), now.audio.encode(voice, 25))
    assert torch.equal(then.image.encode(pixels), now.image.encode(pixels))


def test_heads_that_checkpoints_bring_along_are_passed_over(broken: Path) -> None:
    change_tensors(weights(broken, "audio_encoder"), lambda tensors: tensors.update({"quantizer.x": torch.zeros(2)}))

    assert forward(load(broken)).isfinite().all()


def test_parts_of_different_models_are_told(broken: Path) -> None:
    from tiny_folder import build_transformer

    build_transformer(text_dim=20).save_pretrained(broken / "transformer")

    with pytest.raises(SourceError, match="text_dim 20, text_encoder has 16"):
        load(broken)


def test_a_config_the_network_refuses_is_told(broken: Path) -> None:
    change(broken / "transformer" / "config.json", lambda told: told.update(qk_norm="none"))

    with pytest.raises(SourceError, match="transformer cannot be loaded"):
        load(broken)


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("dtype", {"dtype": "float8"}),
        ("quant", {"quant": "int4"}),
        ("lora.mode", {"lora_mode": "sometimes"}),
        ("attention", {"attention": "keen"}),
        ("memory", {"memory": Profile("disk")}),
    ],
)
def test_choices_that_do_not_exist_are_named(field: str, arguments: dict[str, Any], folder: Path) -> None:
    with pytest.raises(UnknownComponent) as caught:
        load(folder, **arguments)

    assert caught.value.field == field
