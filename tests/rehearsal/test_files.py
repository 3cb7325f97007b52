"""The files of a rehearsal are those that are published: found as such, of their sizes, and real ones when small."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_sizes import PUBLISHED, SMALL
from steering import make_quantiser

from engine.data import Weights
from engine.loading.layout import QUANTISED, find_parts
from engine.loading.model import COMPONENTS
from engine.rehearsal.files import write_published
from engine.rehearsal.reader import headers_only

ADAPTER = "multitalk.safetensors"
LORA = "loras/FusionX_LoRa/Wan2.1_I2V_14B_FusionX_LoRA.safetensors"
QUANTS = ("none", "int8", *QUANTISED)


def weights(quant: str) -> Weights:
    return Weights("multitalk", "", COMPONENTS, quant=quant, adapter=ADAPTER)


def manifest_sizes() -> dict[str, tuple[int, bool]]:
    """Return the bytes that the manifest knows of files of MultiTalk's family, by name, and whether they are exact."""
    manifest = yaml.safe_load((files("engine.hub") / "manifest.yaml").read_text("utf-8"))
    return {
        Path(file["path"]).name: (file.get("size", file.get("about")), "size" in file)
        for part in manifest["parts"].values()
        if not part["repository"].startswith("meituan-longcat/")
        for file in part["files"]
    }


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders at full size by quant, which hold a few megabytes each."""
    result = {}
    for quant in QUANTS:
        result[quant] = tmp_path_factory.mktemp(quant)
        write_published(result[quant], PUBLISHED, quant=quant, adapter=ADAPTER, loras=(LORA,))
    return result


@pytest.mark.parametrize("quant", QUANTS)
def test_every_component_is_found_in_what_was_written(quant: str, full: dict[str, Path]) -> None:
    parts, missing = find_parts(full[quant], weights(quant))
    assert missing == ()
    assert set(parts) == set(COMPONENTS)
    # Files of holes.
    taken = sum(path.stat().st_blocks * 512 for path in full[quant].rglob("*") if path.is_file())
    assert taken < 40 * 2**20


@pytest.mark.parametrize("quant", QUANTS)
def test_files_are_as_large_as_the_published_ones(quant: str, full: dict[str, Path]) -> None:
    known = manifest_sizes()
    seen = {path.name: path.stat().st_size for path in full[quant].rglob("*") if path.is_file()}
    # By the names of the presets' own files.
    names = {"dit_model_int8-quanto.safetensors": "dit_model_int8.safetensors"}
    names |= {f"t5_{quant}.safetensors": f"t5_{quant.removesuffix('-quanto')}.safetensors"}
    names |= {"dit_model_fp8-quanto.safetensors": "quant_model_fp8_FusionX.safetensors"}
    compared = 0
    for name, size in seen.items():
        told, exact = known.get(names.get(name, name), (0, False))
        if not name.endswith((".safetensors", ".pth")) or not told or name.startswith("diffusion_pytorch_model"):
            continue
        compared += 1
        if name == ADAPTER:
            assert size == told
        elif name.startswith("models_clip"):
            # The text tower is not written: 0.95 of the published tower's parameters are in no network of ours.
            assert size == pytest.approx(2 * 632e6, rel=0.01)
        elif exact:
            # But for what torch.save puts around the data.
            assert abs(size - told) < 2**20, name
        else:
            # What somebody reported roughly, to three digits as a rule. The published LoRA changes a little more.
            assert size == pytest.approx(told, rel=0.04 if "LoRA" in name else 0.02), name
    # The autoencoder, the picture's and the voice's encoders; beside them text encoder, audio weights and int8 files.
    assert compared >= {"none": 5, "int8": 5, "gguf": 5}.get(quant, 4)


def test_the_shards_are_together_as_large_as_the_published_ones(full: dict[str, Path]) -> None:
    # They are cut into seven of a size; the published ones are cut elsewhere, and the last is smaller.
    told = sum(size for name, (size, _) in manifest_sizes().items() if name.startswith("diffusion_pytorch_model"))
    written = sum(path.stat().st_size for path in full["none"].rglob("diffusion_pytorch_model-*"))
    assert written == pytest.approx(told, rel=0.001)


def test_a_gguf_file_is_as_large_as_8_bits_and_a_scale_for_32(full: dict[str, Path]) -> None:
    (path,) = full["gguf"].glob("*.gguf")
    # 16.39e9 parameters, nearly all of them in matrices: 34 bytes for 32 values.
    assert path.stat().st_size == pytest.approx(16_394_878_784 * 34 / 32, rel=0.002)


@pytest.mark.parametrize("quant", QUANTS)
def test_small_files_are_loaded_for_real(quant: str, tmp_path: Path) -> None:
    import torch

    from plugins.families.multitalk.model import load_multitalk

    write_published(tmp_path, SMALL, quant=quant, adapter=ADAPTER, loras=(LORA,))
    made = make_quantiser(quant)
    model = load_multitalk(tmp_path, device="cpu", dtype="bfloat16", quant=quant, quantiser=made, wanted=weights(quant))
    network: Any = model.transformer
    assert len(network.blocks) == 2
    weight = network.blocks[0].attn1.to_q.weight
    kinds = {"int8": "Int8Tensor", "int8-quanto": "Int8Tensor", "fp8-quanto": "Float8Tensor", "gguf": "GGUFParameter"}
    assert kinds.get(quant, "Parameter") in (type(weight).__name__, type(weight.data).__name__)
    assert network.blocks[0].audio_attn.to_q.weight.shape == (128, 128)
    # Holes read as zeros.
    assert not torch.cat([value.flatten() for value in network.blocks[0].norm2.parameters()]).any()


def test_a_lora_of_the_files_goes_with_the_network(tmp_path: Path) -> None:
    from plugins.families.multitalk.model import load_multitalk

    write_published(tmp_path, SMALL, quant="none", adapter=ADAPTER, loras=(LORA,))
    model = load_multitalk(
        tmp_path, device="cpu", dtype="bfloat16", wanted=weights("none"), loras=((tmp_path / LORA, 1.0),)
    )
    assert any("lora" in name for name, _ in model.transformer.named_modules())


def test_headers_alone_give_tensors_of_the_files_names_and_shapes(full: dict[str, Path]) -> None:
    import safetensors
    import safetensors.torch

    from engine.planning.gpus import cards
    from engine.rehearsal.card import pretended

    path = full["none"] / ADAPTER
    with safetensors.safe_open(path, "pt") as opened:
        real = {name: opened.get_slice(name).get_shape() for name in opened.keys()}  # noqa: SIM118 - no mapping
    with pretended(cards()[0]) as ledger, headers_only():
        loaded = safetensors.torch.load_file(path)
        assert {name: list(tensor.shape) for name, tensor in loaded.items()} == real
        assert sum(tensor.nbytes for tensor in loaded.values()) == ledger.live["cpu"]
        with safetensors.safe_open(path, "pt") as opened:
            assert sorted(opened.keys()) == sorted(real)
            assert opened.get_tensor("audio_proj.proj1.weight").shape == (512, 46080)
