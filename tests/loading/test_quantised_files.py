"""Published quantised files are read with their maps and kept as they are stored, and take LoRAs."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from original_folder import random_state, small_transformer, write_original
from safetensors.torch import load_file, save_file
from torch import Tensor
from whole_tensors import read_part

from engine.data import Weights
from engine.errors import ConfigError, SourceError
from engine.loading.checkpoint import placed_size
from engine.loading.key_map import is_audio
from engine.loading.layout import find_parts
from engine.loading.lora import LoraMerger, load_runtime_lora
from engine.loading.quantize import change_weight
from engine.loading.quanto import dequantize
from plugins.families.multitalk.model import load_multitalk
from plugins.families.multitalk.transformer import MultiTalkTransformer3DModel
from scripts.evaluate_tiny.quantised_folder import as_quanto, write_gguf

pytest.importorskip("torchao")

MAP = "dit_model_map_int8.json"
FP8 = torch.float8_e4m3fn
#: Relative error against the same weights dense; diffusers unpacks GGUF in float16.
UNPACKED = 1e-3


def read(folder: Path, quant: str, dtype: torch.dtype = torch.float32, **more: Any) -> Any:
    parts, missing = find_parts(folder, Weights("multitalk", "", ("transformer",), quant=quant, **more))
    assert missing == ()
    return read_part("transformer", parts["transformer"], dtype)


def forward(model: Any, recordings: Any) -> Tensor:
    sample: Tensor = recordings.replay(model, recordings.tensors("forward_b_two_default"))
    return sample[0]


def error(given: Tensor, wanted: Tensor) -> float:
    return float((given - wanted).norm() / wanted.norm())


def unpacked(folder: Path, quant: str) -> dict[str, Tensor]:
    """Return what the quantised file in `folder` stores, dense, by the reference's names."""
    if quant == "gguf":
        from gguf import GGUFReader, quants

        tensors = GGUFReader(next(folder.glob("*.gguf"))).tensors
        wan = {tensor.name: torch.tensor(quants.dequantize(tensor.data, tensor.tensor_type)) for tensor in tensors}
        wan["patch_embedding.weight"] = wan["patch_embedding.weight"].view(64, 36, 1, 2, 2)
        return wan | load_file(folder / "multitalk.safetensors")
    path = next((folder / "quant_models").glob(f"*{quant.partition('-')[0]}*.safetensors"))
    stored, kind = load_file(path), "qint8" if quant == "int8-quanto" else "qfloat8"
    quantised = {name.removesuffix(".weight._data"): {"weights": kind} for name in stored if name.endswith("._data")}
    return dequantize(stored, quantised, torch.float32)


@pytest.fixture(scope="module")
def quanto(tmp_path_factory: pytest.TempPathFactory, home_recordings: Any) -> Path:
    """The layout of MultiTalk's repository: the recorded int8 file with its map, and a float8 one."""
    root = tmp_path_factory.mktemp("quanto")
    folder = root / "quant_models"
    folder.mkdir()
    (root / "config.json").write_text(home_recordings.header("model_A")["config"])
    save_file(home_recordings.tensors("quant_int8_model"), folder / "dit_model_int8.safetensors")
    shutil.copy(home_recordings.path("quant_int8_map.json"), folder / MAP)
    modules = list(json.loads((folder / MAP).read_text()))
    dense = home_recordings.tensors("model_A")
    save_file(as_quanto(dense, modules, FP8), folder / "quant_model_fp8_FusionX.safetensors")
    told = {module: {"weights": "qfloat8", "activations": "none"} for module in modules}
    (folder / "quantization_map_fp8_FusionX.json").write_text(json.dumps(told))
    return root


# --- quanto -----------------------------------------------------------------------------------------------------------


def test_int8_file_gives_the_recorded_forward_and_stays_int8(quanto: Path, home_recordings: Any) -> None:
    model = read(quanto, "int8-quanto")

    expected = home_recordings.tensors("quant_int8_forward")["out"]
    torch.testing.assert_close(forward(model, home_recordings), expected, atol=1e-4, rtol=0)
    assert model.blocks[0].attn1.to_q.weight.qdata.dtype == torch.int8
    assert type(model.condition_embedder.text_embedder.linear_1.weight.data) is Tensor


def test_float8_file_gives_what_its_dense_weights_give(quanto: Path, home_recordings: Any) -> None:
    dense = home_recordings.model("model_A", state=unpacked(quanto, "fp8-quanto"))

    model = read(quanto, "fp8-quanto")

    given = forward(model, home_recordings)
    torch.testing.assert_close(given, forward(dense, home_recordings), atol=1e-4, rtol=0)
    assert model.blocks[1].ffn.net[2].weight.qdata.dtype == FP8
    # All 42 layers have three bits after the leading one.
    assert error(given, forward(home_recordings.model("model_A"), home_recordings)) < 0.1


@pytest.mark.parametrize("quant", ["int8-quanto", "fp8-quanto"])
def test_a_bfloat16_network_computes_with_them(quant: str, quanto: Path, home_recordings: Any) -> None:
    exact = forward(read(quanto, quant), home_recordings)

    model = read(quanto, quant, torch.bfloat16)

    # bfloat16 alone is up to 2 % away, and torchao rounds the product once more before it takes the scale.
    assert error(forward(model, home_recordings), exact) < 0.05
    assert model.condition_embedder.time_proj.weight.dtype == torch.float32


def test_a_map_is_found_by_what_it_lists(quanto: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(quanto, tmp_path / "copy"))
    # The float8 file's map, of the same modules, comes first, and so does one of other modules.
    (folder / "quant_models" / "quantization_map_fp8_FusionX.json").rename(folder / "quant_models" / "a.json")
    (folder / "quant_models" / "b.json").write_text(json.dumps({"another": {"weights": "qint8"}}))
    (folder / "quant_models" / MAP).rename(folder / "quant_models" / "whatever.json")

    parts, _ = find_parts(folder, Weights("", "", ("transformer",), quant="int8-quanto"))
    assert parts["transformer"].map == folder / "quant_models" / "whatever.json"

    (folder / "quant_models" / "whatever.json").unlink()
    with pytest.raises(SourceError, match=r"beside quant_models/dit_model_int8\.safetensors lists its \d+"):
        read(folder, "int8-quanto")


def test_of_two_files_one_is_named(quanto: Path, tmp_path: Path, home_recordings: Any) -> None:
    folder = Path(shutil.copytree(quanto, tmp_path / "copy"))
    shutil.copy(folder / "quant_models" / "dit_model_int8.safetensors", folder / "quant_models" / "merged.safetensors")

    with pytest.raises(SourceError, match=r"more than one transformer of quant=int8-quanto") as caught:
        read(folder, "int8-quanto")
    assert "quant.file=" in caught.value.hint
    assert read(folder, "int8-quanto", file="quant_models/merged.safetensors") is not None
    with pytest.raises(SourceError, match="quant_models/none is no") as caught:
        read(folder, "int8-quanto", file="quant_models/none")
    assert "quant_models/merged.safetensors" in caught.value.hint


def test_a_folder_without_such_a_file_says_so(tmp_path: Path) -> None:
    for quant in ("int8-quanto", "fp8-quanto", "gguf"):
        _, missing = find_parts(tmp_path, Weights("", "", ("transformer",), quant=quant))
        assert missing == (f"a file with a transformer of quant={quant}",)


def test_a_whole_model_is_loaded_from_quantised_files(tmp_path: Path) -> None:
    root = write_original(tmp_path / "model")
    dense: Any = load_multitalk(root, device="cpu", dtype="float32")
    text = next(root.rglob("models_t5*.pth"))
    states = {"dit_model": small_transformer(), "t5": torch.load(text, weights_only=True)}
    for path in [text, *root.glob("Wan*/*.safetensors"), root / "MeiGen-MultiTalk" / "multitalk.safetensors"]:
        path.unlink()
    (root / "quant_models").mkdir()
    for stem, state in states.items():
        linears = re.compile(r"(blocks\.\d+\.(?:self_attn|attn|ffn)\.\w+(?:\.0)?)\.weight")
        modules = [match[1] for name in state if (match := linears.fullmatch(name)) and state[name].ndim == 2]
        save_file(as_quanto(state, modules, torch.int8), root / "quant_models" / f"{stem}_int8.safetensors")
        told = {module: {"weights": "qint8", "activations": "none"} for module in modules}
        (root / "quant_models" / f"{stem}_map_int8.json").write_text(json.dumps(told))

    model: Any = load_multitalk(root, device="cpu", dtype="float32", quant="int8-quanto")

    said, expected = (loaded.text.encode("a person speaks") for loaded in (model, dense))
    assert 0 < error(said, expected) < 0.03
    kept, expected = (loaded.transformer.blocks[0].attn1.to_q.weight.data for loaded in (model, dense))
    assert 0 < error(kept.dequantize(), expected) < 0.02


# --- GGUF -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory, home_recordings: Any) -> Path:
    """Wan's tensors as city96's converter writes them, and MultiTalk's own file."""
    pytest.importorskip("gguf")
    root = tmp_path_factory.mktemp("gguf")
    state = home_recordings.tensors("model_A")
    audio = {name: state.pop(name) for name in list(state) if is_audio(name)}
    save_file(audio, root / "multitalk.safetensors")
    (root / "config.json").write_text(home_recordings.header("model_A")["config"])
    write_gguf(root / "wan2.1-i2v-14b-480p-Q8_0.gguf", state)
    return root


def test_gguf_file_stays_packed_and_hears_by_audio_weights_beside_it(packed: Path, home_recordings: Any) -> None:
    dense = forward(home_recordings.model("model_A"), home_recordings)

    model = read(packed, "gguf", adapter="multitalk.safetensors")

    given = forward(model, home_recordings)
    assert 0 < error(given, dense) < 0.02
    same = home_recordings.model("model_A", state=unpacked(packed, "gguf"))
    assert error(given, forward(same, home_recordings)) < UNPACKED
    assert model.blocks[0].attn1.to_q.weight.dtype == torch.uint8
    assert model.condition_embedder.time_proj.weight.dtype == torch.float32
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))


def test_a_damaged_gguf_file_is_named(packed: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(packed, tmp_path / "copy"))
    path = next(folder.glob("*.gguf"))
    path.write_bytes(path.read_bytes()[:-1000])

    with pytest.raises(SourceError, match=path.name):
        read(folder, "gguf")


@pytest.mark.parametrize("quant", ["int8-quanto", "fp8-quanto", "gguf"])
def test_the_size_in_memory_is_known_from_the_headers(quant: str, quanto: Path, packed: Path) -> None:
    folder = packed if quant == "gguf" else quanto
    parts, _ = find_parts(folder, Weights("", "", ("transformer",), quant=quant))
    model = read_part("transformer", parts["transformer"], torch.bfloat16)

    def size(weight: Any) -> int:
        return int(weight.qdata.nbytes + weight.scale.nbytes if hasattr(weight, "qdata") else weight.nbytes)

    told = placed_size("transformer", parts["transformer"], torch.bfloat16, network=MultiTalkTransformer3DModel)
    assert told == sum(size(parameter) for parameter in model.parameters())


# --- LoRAs on them ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lora() -> dict[str, Tensor]:
    shapes: dict[str, tuple[int, ...]] = {}
    for block in (f"diffusion_model.blocks.{index}" for index in range(2)):
        shapes |= {f"{block}.self_attn.q.lora_down.weight": (3, 64), f"{block}.self_attn.q.lora_up.weight": (64, 3)}
        shapes |= {f"{block}.ffn.0.lora_down.weight": (3, 64), f"{block}.ffn.0.lora_up.weight": (128, 3)}
        shapes |= {
            f"{block}.self_attn.k.diff_b": (64,),
            f"{block}.self_attn.o.diff": (64, 64),
            f"{block}.norm3.diff": (64,),
        }
    return random_state(shapes, seed=5)


def merged(model: Any, lora: dict[str, Tensor], scale: float) -> Any:
    merger = LoraMerger(lora, scale=scale)
    for name in [name for name, _ in model.named_parameters() if name in merger]:
        change_weight(model, name, lambda weight, name=name: merger.merge(name, weight))  # type: ignore[misc]
    assert merger.coverage().unmatched == ()
    return model


@pytest.mark.parametrize("quant", ["int8-quanto", "fp8-quanto", "gguf"])
def test_a_lora_at_run_time_leaves_quantised_weights_alone(
    quant: str, quanto: Path, packed: Path, lora: dict[str, Tensor], home_recordings: Any
) -> None:
    folder = packed if quant == "gguf" else quanto
    dense = home_recordings.model("model_A", state=unpacked(folder, quant))
    expected = forward(merged(dense, lora, 0.5), home_recordings)
    model = read(folder, quant)
    bare = forward(model, home_recordings)

    switch = load_runtime_lora(model, lora, "one")
    off = forward(model, home_recordings)
    with switch.use(0.5):
        on = forward(model, home_recordings)

    assert torch.equal(off, bare)
    assert error(on, expected) < UNPACKED
    assert error(bare, expected) > 0.1


@pytest.mark.parametrize("quant", ["int8-quanto", "fp8-quanto"])
def test_a_lora_is_merged_into_quantised_weights(
    quant: str, quanto: Path, lora: dict[str, Tensor], home_recordings: Any
) -> None:
    dense = home_recordings.model("model_A", state=unpacked(quanto, quant))
    expected = forward(merged(dense, lora, 0.5), home_recordings)

    model = merged(read(quanto, quant), lora, 0.5)

    # What was changed is rounded a second time.
    assert error(forward(model, home_recordings), expected) < (0.05 if quant == "fp8-quanto" else 0.02)
    assert hasattr(model.blocks[0].attn1.to_q.weight, "qdata")


def test_a_lora_merged_into_a_gguf_file_is_refused_with_what_works(packed: Path, lora: dict[str, Tensor]) -> None:
    with pytest.raises(ConfigError, match="LoRAs cannot be merged") as caught:
        merged(read(packed, "gguf"), lora, 1.0)

    assert "lora.mode=runtime" in caught.value.hint
