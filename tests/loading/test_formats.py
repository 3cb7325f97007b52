"""Weights in the formats that common tools write are read to the same numbers; others are told by their names."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from original_folder import CONFIG, FILES, random_state, small_transformer, write_original
from safetensors.torch import load_file, save_file
from steering import make_quantiser
from torch import Tensor
from whole_tensors import read_part

from engine.assembly.compose import compose
from engine.assembly.estimates import _is_scaled, make_load
from engine.data import Weights
from engine.errors import SourceError
from engine.loading.checkpoint import placed_size
from engine.loading.component_files import ComponentFiles
from engine.loading.file_kinds import what_is
from engine.loading.key_map import TOOL_PREFIXES, engine_name, is_audio, to_engine
from engine.loading.layout import describe_unread, find_parts
from engine.loading.model import COMPONENTS, load_model
from engine.loading.safetensors_reader import AheadReader
from engine.loading.scaled import Scaled, spread
from engine.loading.tensor_names import refusal
from engine.planning import memory
from engine.planning.memory import Work
from engine.planning.parameters import published_sizes
from engine.plugin.manager import installed
from plugins.sources.volume import Volume, VolumeConfig

WANTED = Weights("multitalk", "multitalk", COMPONENTS, adapter="multitalk.safetensors")
WAN = "Wan2.1-I2V-14B-480P"
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
STATE = small_transformer()
WEIGHTS = {name: tensor for name, tensor in STATE.items() if not is_audio(name)}
AUDIO = {name: tensor for name, tensor in STATE.items() if is_audio(name)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_original(tmp_path_factory.mktemp("volume") / "multitalk")


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy to change, without the transformer's shards."""
    copy = Path(shutil.copytree(whole, tmp_path / "multitalk"))
    for path in (copy / WAN).glob("*.safetensors"):
        path.unlink()
    return copy


def save(state: Mapping[str, Tensor], path: Path, **metadata: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous().clone() for name, tensor in state.items()}, path, metadata or None)
    return path


def put(folder: Path, state: Mapping[str, Tensor], **metadata: str) -> Path:
    """Save a transformer as one file in a folder as ComfyUI has it, with Wan's config above."""
    (folder / WAN / "config.json").rename(folder / "config.json")
    return save(state, folder / "diffusion_models" / "wan.safetensors", **metadata)


def transformer(folder: Path, *, dtype: torch.dtype = torch.float32, **more: Any) -> dict[str, Tensor]:
    """Read it as an engine does, and hold the size that was foretold to the one it has."""
    expected = Weights(**(vars(WANTED) | {"components": ("transformer",)} | more))
    parts, missing = find_parts(folder, expected)
    assert missing == ()
    disk = ComponentFiles(parts["transformer"], "transformer", dtype)
    module = disk.read(AheadReader(), "cpu")
    assert disk.size == sum(tensor.nbytes for tensor in module.parameters())
    state: dict[str, Tensor] = module.state_dict()
    return state


def hold_to(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor] = STATE) -> None:
    assert state.keys() == {to_engine(name) for name in wanted}
    different = [name for name, tensor in wanted.items() if not torch.equal(state[to_engine(name)], tensor.float())]
    assert not different


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


# --- float8 and int8 with scales --------------------------------------------------------------------------------------


def is_packed(name: str, tensor: Tensor) -> bool:
    return name.startswith("blocks.") and name.endswith(".weight") and tensor.ndim == 2


def pack(
    state: Mapping[str, Tensor],
    scale: Callable[[Tensor], Tensor],
    *,
    end: str = ".scale_weight",
    dtype: torch.dtype = E4M3,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return a file's tensors with scales beside the weights, and the weights that they stand for.

    What they stand for is worked out here value by value, not with the engine's own code.
    """
    stored: dict[str, Tensor] = {}
    meant: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if not is_packed(name, tensor):
            stored[name] = meant[name] = tensor
            continue
        factors = scale(tensor)
        rows, columns = tensor.shape
        grid = factors.reshape(factors.shape[0], -1) if factors.ndim > 1 else factors.reshape(-1, 1)
        per_row, per_column = -(-rows // grid.shape[0]), -(-columns // grid.shape[1])
        whole = torch.tensor(
            [[float(grid[row // per_row, column // per_column]) for column in range(columns)] for row in range(rows)]
        )
        most = 127.0 if dtype == torch.int8 else torch.finfo(dtype).max
        data = (tensor / whole).clamp(-most, most)
        kept = (data.round() if dtype == torch.int8 else data).to(dtype)
        stored[name], stored[name.removesuffix(".weight") + end] = kept, factors
        meant[name] = kept.float() * whole
    return stored, meant


def tensorwise(tensor: Tensor) -> Tensor:
    return tensor.abs().amax() / 100


def rowwise(tensor: Tensor) -> Tensor:
    return tensor.abs().amax(dim=1, keepdim=True).clamp_min(1e-6) / 100


def blockwise(side: int) -> Callable[[Tensor], Tensor]:
    def scale(tensor: Tensor) -> Tensor:
        rows, columns = (-(-size // side) for size in tensor.shape)
        return torch.linspace(0.005, 0.02, rows * columns).view(rows, columns)

    return scale


KINDS: dict[str, dict[str, Any]] = {
    "ComfyUI, one number": {"scale": lambda tensor: tensorwise(tensor).reshape(())},
    "ComfyUI, a list of one": {"scale": lambda tensor: tensorwise(tensor).reshape(1)},
    "Kijai, a row": {"scale": rowwise},
    "Kijai, a row in one dimension": {"scale": lambda tensor: rowwise(tensor).flatten()},
    "a column": {"scale": lambda tensor: tensor.abs().amax(dim=0, keepdim=True).clamp_min(1e-6) / 100},
    "lightx2v, float8": {"scale": rowwise, "end": ".weight_scale"},
    "lightx2v, int8": {"scale": rowwise, "end": ".weight_scale", "dtype": torch.int8},
    "float8_e5m2": {"scale": lambda tensor: tensorwise(tensor).reshape(()), "dtype": E5M2},
    "blocks of 8, which divide": {"scale": blockwise(8), "end": ".weight_scale_inv"},
    "blocks of 10, which do not": {"scale": blockwise(10), "end": ".weight_scale_inv"},
    "a scale in 16 bits": {"scale": lambda tensor: rowwise(tensor).bfloat16()},
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_weights_with_scales_are_the_products(folder: Path, kind: Mapping[str, Any]) -> None:
    stored, meant = pack(WEIGHTS, **kind)
    marks = {"scaled_fp8": torch.zeros(2, dtype=E4M3), "blocks.0.self_attn.q.scale_input": torch.ones(())}
    put(folder, {f"model.diffusion_model.{name}": tensor for name, tensor in (stored | marks).items()})

    hold_to(transformer(folder), meant | AUDIO)
    # And near the ones they were made of: 8 bits leave a few per cent.
    name = "blocks.0.ffn.0.weight"
    assert float((meant[name] - WEIGHTS[name]).norm() / WEIGHTS[name].norm()) < (0.2 if "blocks" in str(kind) else 0.1)


def test_the_scale_counts_where_the_values_were_cast_to_more_bits(folder: Path) -> None:
    stored, meant = pack(WEIGHTS, tensorwise)
    put(
        folder, {name: tensor.to(torch.bfloat16) if tensor.dtype == E4M3 else tensor for name, tensor in stored.items()}
    )
    hold_to(transformer(folder), meant | AUDIO)


def test_audio_weights_with_scales_lie_over_plain_ones(folder: Path) -> None:
    put(folder, WEIGHTS)
    stored, meant = pack(AUDIO, tensorwise)
    save(stored | {"scaled_fp8": torch.zeros(0, dtype=E4M3)}, folder / "MeiGen-MultiTalk" / "multitalk.safetensors")
    hold_to(transformer(folder), WEIGHTS | meant)


def test_float8_without_scales_is_taken_as_it_is_though_it_bears_the_mark(folder: Path) -> None:
    plain = {name: tensor.to(E4M3) if is_packed(name, tensor) else tensor for name, tensor in WEIGHTS.items()}
    put(folder, plain | {"scaled_fp8": torch.zeros(0, dtype=E4M3)})
    hold_to(transformer(folder), plain | AUDIO)


def test_weights_with_scales_can_be_kept_as_int8(folder: Path) -> None:
    pytest.importorskip("torchao")
    stored, _ = pack(WEIGHTS, rowwise)
    put(folder, stored)
    model: Any = load_model(
        folder, device="cpu", dtype="bfloat16", quant="int8", quantiser=make_quantiser("int8"), wanted=WANTED
    )
    assert model.transformer.blocks[0].attn1.to_q.weight.dtype == torch.bfloat16
    assert hasattr(model.transformer.blocks[0].attn1.to_q.weight, "qdata")


@pytest.mark.parametrize(
    ("shape", "weight"), [((3,), (8, 8)), ((2, 3), (4, 4)), ((8, 8, 2), (8, 8)), ((0,), (8, 8)), ((4,), (4, 2, 2))]
)
def test_a_scale_that_belongs_to_no_such_weight_is_refused(shape: tuple[int, ...], weight: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="a scale of shape"):
        Scaled(torch.zeros(weight, dtype=E4M3), torch.ones(shape))


def test_a_scale_that_does_not_fit_is_named_before_anything_is_read(folder: Path) -> None:
    stored, _ = pack(WEIGHTS, tensorwise)
    put(folder, stored | {"blocks.1.ffn.0.scale_weight": torch.ones(5)})
    with pytest.raises(SourceError, match=r"blocks\.1\.ffn\.0\.weight has a scale of shape \(5,\)"):
        load_model(folder, device="cpu", dtype="float32", wanted=WANTED)


def test_blocks_are_spread_to_their_rows_and_columns() -> None:
    scale = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    expected = torch.tensor([[1.0, 1, 2], [1, 1, 2], [3, 3, 4]])
    assert torch.equal(spread(scale, (3, 3)), expected)
    assert torch.equal(spread(scale[:, :, None], (3, 3)), expected)


def note(**told: Any) -> Tensor:
    return torch.frombuffer(bytearray(json.dumps(told).encode()), dtype=torch.uint8)


def test_comfyuis_notes_are_heeded(folder: Path) -> None:
    stored, meant = pack(WEIGHTS, tensorwise, end=".weight_scale")
    path = put(folder, stored | {"blocks.0.ffn.0.comfy_quant": note(format="float8_e4m3fn")})
    hold_to(transformer(folder), meant | AUDIO)
    for told in ({"format": "nvfp4"}, {"format": "int8_tensorwise", "convrot": True}, {}):
        save(stored | {"blocks.0.ffn.0.comfy_quant": note(**told)}, path)
        with pytest.raises(SourceError, match="which is not supported"):
            transformer(folder)
    layers = json.dumps({"layers": {"blocks.0.ffn.0": {"format": "mxfp8"}}})
    save(stored, path, _quantization_metadata=layers)
    with pytest.raises(SourceError, match=r"blocks\.0\.ffn\.0 quantised as 'mxfp8'"):
        transformer(folder)
    save(stored | {"blocks.0.ffn.0.comfy_quant": torch.zeros(20, dtype=torch.uint8)}, path)
    with pytest.raises(SourceError, match="note on quantisation that cannot be read"):
        transformer(folder)


def test_a_plan_knows_that_such_weights_become_dense_in_the_hosts_memory(folder: Path) -> None:
    config = compose(["model=multitalk", "device=cuda", "dtype=bfloat16", "memory=none"])
    stored, _ = pack(WEIGHTS, tensorwise)
    path = put(folder, WEIGHTS)
    assert not _is_scaled(config, folder)
    save(stored, path)
    assert _is_scaled(config, folder)
    sizes = published_sizes("wan-14b")
    dense = sizes.counts["transformer"].bytes(2)
    work = Work(frames=81, height=480, width=832, latents=(21, 60, 104), speakers=1, passes=1, windows=1, seconds=3.3)
    plain, scaled = (
        memory.stages(
            sizes, make_load(config, installed(), device="cuda", dtype="bfloat16", converted=True, scaled=scaled), work
        )[0].total
        for scaled in (False, True)
    )
    assert plain < dense < scaled < dense * 1.1


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
    assert placed_size(component, parts[component], torch.float32) == size


def test_an_umt5_with_scales_is_the_products(whole: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "multitalk"))
    (folder / WAN / FILES["text_encoder"]).unlink()
    save(comfy_umt5_scaled(whole), folder / "text_encoders" / "umt5_xxl_fp8_e4m3fn_scaled.safetensors")
    model: Any = load_model(folder, device="cpu", dtype="float32", wanted=WANTED)
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


# --- what is not read -------------------------------------------------------------------------------------------------

NOT_WEIGHTS = {
    "a git-lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "git lfs pull"),
    "a web page": (b"<!DOCTYPE html><html><head><title>Sign in</title>", "token"),
    "a web page in lower case": (b"\n  <html>\n<body>login</body>", "token"),
    "a zip archive": (b"PK\x03\x04\x14\0\0\0\0\0" + bytes(20) + b"models/wan.txt", "unpack"),
    "a PyTorch archive": (b"PK\x03\x04" + bytes(26) + b"archive/data.pkl" + bytes(9), "safetensors"),
    "an old pickle": (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "safetensors"),
    "a GGUF file": (b"GGUF\x03\0\0\0" + bytes(100), "quant=gguf"),
    "a gzip archive": (b"\x1f\x8b\x08" + bytes(100), "unpack"),
    "zeros": (bytes(4096), "again"),
    "a server's error": (b'{"error":"Invalid username or password."}', "token"),
    "a word of the hub": (b"Entry not found", "name"),
}


@pytest.mark.parametrize(("content", "hint"), NOT_WEIGHTS.values(), ids=NOT_WEIGHTS.keys())
@pytest.mark.parametrize("name", ["x.safetensors", f"{WAN}/{FILES['vae']}", "text_encoder/model.safetensors"])
def test_what_is_no_file_of_weights_is_told_by_what_it_is(
    whole: Path, tmp_path: Path, name: str, content: bytes, hint: str
) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "multitalk"))
    if name.startswith("text_encoder"):
        (folder / WAN / FILES["text_encoder"]).unlink()
        (folder / "text_encoder").mkdir()
        (folder / "text_encoder" / "config.json").write_text('{"d_model": 16, "vocab_size": 20, "num_layers": 1}')
    (folder / name).write_bytes(content)
    if name.endswith(".pth") and b"data.pkl" in content + b"data.pkl" * (content[:2] == b"\x80\x02"):
        # Of the right kind, and damaged.
        expected, hint = "cannot be read", "get this file again"
    else:
        result = what_is(folder / name)
        assert result is not None
        expected = result[0].partition(" (")[0]
    with pytest.raises(SourceError) as caught:
        load_model(folder, device="cpu", dtype="float32", wanted=WANTED)
    assert expected in caught.value.what
    assert hint in caught.value.hint
    assert "header too large" not in str(caught.value)
    assert "\n" not in str(caught.value)


ZERO = torch.zeros(4, 4)
OTHERS: dict[str, tuple[dict[str, Tensor], str]] = {
    "a LoRA": (
        {
            "diffusion_model.blocks.0.self_attn.q.lora_down.weight": ZERO,
            "diffusion_model.blocks.0.self_attn.q.lora_up.weight": ZERO,
        },
        "a LoRA",
    ),
    "a LoRA with whole tensors": (
        {"blocks.0.self_attn.q.lora_A.weight": ZERO, "patch_embedding.weight": ZERO},
        "a LoRA",
    ),
    "kohya's LoRA": ({"lora_unet_blocks_0_ffn_0.lora_down.weight": ZERO}, "a LoRA"),
    "bitsandbytes nf4": (
        {
            "blocks.0.ffn.0.weight": ZERO,
            "blocks.0.ffn.0.weight.quant_state.bitsandbytes__nf4": ZERO,
            "blocks.0.ffn.0.weight.absmax": ZERO,
        },
        "nf4",
    ),
    "bitsandbytes int8": ({"blocks.0.ffn.0.weight": ZERO, "blocks.0.ffn.0.SCB": ZERO}, "bitsandbytes"),
    "nunchaku": (
        {"blocks.0.ffn.0.qweight": ZERO, "blocks.0.ffn.0.wscales": ZERO, "blocks.0.ffn.0.lora_down": ZERO},
        "nunchaku",
    ),
    "AWQ": ({"blocks.0.ffn.0.qweight": ZERO, "blocks.0.ffn.0.qzeros": ZERO}, "GPTQ or AWQ"),
    "nvfp4": (
        {"blocks.0.ffn.0.weight": ZERO, "blocks.0.ffn.0.weight_scale": ZERO, "blocks.0.ffn.0.weight_scale_2": ZERO},
        "nvfp4",
    ),
    "mxfp8": ({"blocks.0.ffn.0.weight": ZERO, "blocks.0.ffn.0.weight_scale": ZERO.to(torch.uint8)}, "mxfp8"),
    "T5": (
        {
            "shared.weight": ZERO,
            "encoder.block.0.layer.0.SelfAttention.q.weight": ZERO,
            "encoder.block.1.layer.0.SelfAttention.q.weight": ZERO,
        },
        "not umT5",
    ),
    "SD's autoencoder": (
        {"encoder.conv_in.weight": ZERO, "post_quant_conv.weight": ZERO, "encoder.mid.norm1.weight": ZERO},
        "autoencoder of another model",
    ),
    "VACE": ({"vace_blocks.0.self_attn.q.weight": ZERO, "blocks.0.self_attn.q.weight": ZERO}, "VACE"),
    "Flux": ({"double_blocks.0.img_attn.qkv.weight": ZERO}, "another family"),
    "all in one": (
        {"model.diffusion_model.blocks.0.self_attn.q.weight": ZERO, "vae.conv2.weight": ZERO},
        "a whole model in one file",
    ),
    "anything": ({"what.is.this": ZERO}, "'what.is.this'"),
}


@pytest.mark.parametrize(("state", "told"), OTHERS.values(), ids=OTHERS.keys())
def test_a_file_in_a_format_that_is_not_read_is_named_with_what_to_take(
    folder: Path, state: dict[str, Tensor], told: str
) -> None:
    put(folder, state)
    with pytest.raises(SourceError, match=r"there and not read: diffusion_models/wan\.safetensors is ") as caught:
        Volume(VolumeConfig(path=str(folder.parent))).locate(WANTED)
    assert told in caught.value.what
    with pytest.raises(SourceError, match=r"diffusion_models/wan\.safetensors is "):
        load_model(folder, device="cpu", dtype="float32", wanted=WANTED)


def test_other_files_are_described_where_something_is_missing(folder: Path) -> None:
    hearing = folder / "chinese-wav2vec2-base"
    (hearing / "model.safetensors").rename(folder / "wav2vec2.safetensors")
    torch.save({"model": {}}, hearing / "chinese-wav2vec2-base-fairseq-ckpt.pt")
    torch.save({"a": ZERO}, folder / "wan2.1.ckpt")
    (folder / "weights.zip").write_bytes(b"PK\x03\x04" + bytes(60))
    told = "\n".join(describe_unread(folder, WANTED))
    assert "fairseq-ckpt.pt is fairseq's checkpoint of wav2vec2: use model.safetensors" in told
    assert "wav2vec2.safetensors is a wav2vec2 without its config.json" in told
    assert "wan2.1.ckpt is a PyTorch file whose name is not supported" in told
    assert "weights.zip is a zip archive: unpack it" in told
    assert FILES["vae"] not in told
    assert "multitalk.safetensors" not in told


def test_a_text_to_video_model_is_told(folder: Path) -> None:
    put(folder, {name: tensor for name, tensor in WEIGHTS.items() if "img" not in name})
    with pytest.raises(SourceError, match="is a text-to-video model"):
        load_model(folder, device="cpu", dtype="float32", wanted=WANTED)


def test_files_that_are_read_are_refused_by_nothing(whole: Path) -> None:
    for path in whole.rglob("*.safetensors"):
        assert refusal(dict.fromkeys(load_file(path), "F32")) == ""
    assert refusal(dict.fromkeys(random_state({"blocks.0.norm_x.weight": (4,)}), "F32")) == ""
