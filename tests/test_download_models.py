"""Published weights, laid out by the download script, are what the engine reads."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny_folder import write_folder

from engine.multitalk.keys import to_reference
from engine.multitalk.load import load_model
from engine.multitalk.transformer import MultiTalkTransformer3DModel
from scripts import download_models


def is_audio(key: str) -> bool:
    return key.startswith("audio_proj.") or ".audio_attn." in key or ".norm_audio." in key


class Hub:
    """Repositories in a folder, in the layout of the public ones, cut from a complete model."""

    def __init__(self, root: Path, *, sharded: bool) -> None:
        self.root = root
        whole = write_folder(root / "whole")
        model = MultiTalkTransformer3DModel.from_pretrained(whole / "transformer")
        self.state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
        wan = root / download_models.WAN
        shutil.copytree(whole, wan)
        shutil.rmtree(wan / "audio_encoder")
        base = {key: tensor for key, tensor in self.state.items() if not is_audio(key)}
        stem = wan / "transformer" / "diffusion_pytorch_model"
        stem.with_suffix(".safetensors").unlink()
        if sharded:
            names = {key: f"diffusion_pytorch_model-{i % 2 + 1:05d}-of-00002.safetensors" for i, key in enumerate(base)}
            for name in set(names.values()):
                part = {key: tensor for key, tensor in base.items() if names[key] == name}
                save_file(part, wan / "transformer" / name)
            stem.with_suffix(".safetensors.index.json").write_text(json.dumps({"weight_map": names}))
        else:
            save_file(base, stem.with_suffix(".safetensors"))
        shutil.copytree(whole / "audio_encoder", root / download_models.WAV2VEC2)
        audio = {to_reference(key): tensor for key, tensor in self.state.items() if is_audio(key)}
        for repository, file in (
            ("MeiGen-AI/MeiGen-MultiTalk", "multitalk.safetensors"),
            ("MeiGen-AI/InfiniteTalk", "multi/infinitetalk.safetensors"),
        ):
            (root / repository / file).parent.mkdir(parents=True)
            save_file(audio, root / repository / file)
        (root / download_models.FUSIONX[0] / download_models.FUSIONX[1]).parent.mkdir(parents=True)
        save_file({"x": torch.zeros(1)}, root / download_models.FUSIONX[0] / download_models.FUSIONX[1])

    def fetch(self, repository: str, patterns: tuple[str, ...], revision: str | None, into: Path) -> None:
        for pattern in patterns:
            for found in (self.root / repository).glob(pattern):
                target = into / found.relative_to(self.root / repository)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(found, target)


@pytest.mark.parametrize("sharded", [False, True])
def test_downloaded_folder_loads_and_holds_the_published_weights(
    tmp_path: Path, sharded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download_models, "SHARD", 4096)
    hub = Hub(tmp_path / "hub", sharded=sharded)
    folder = download_models.download("multitalk", tmp_path / "models" / "multitalk", hub.fetch)
    loaded: Any = load_model(folder, device="cpu", dtype="float32").transformer
    assert loaded.state_dict().keys() == hub.state.keys()
    assert all(torch.equal(tensor, hub.state[key]) for key, tensor in loaded.state_dict().items())
    assert (folder / "loras" / "Wan2.1_I2V_14B_FusionX_LoRA.safetensors").is_file()
    assert len(list((folder / "transformer").glob("audio-*"))) > 1
    assert not (folder / ".parts").exists()


def test_a_second_run_ends_the_same(tmp_path: Path) -> None:
    hub = Hub(tmp_path / "hub", sharded=True)
    folder = tmp_path / "infinitetalk"
    index = folder / "transformer" / "diffusion_pytorch_model.safetensors.index.json"
    download_models.download("infinitetalk", folder, hub.fetch, turbo=False)
    first = json.loads(index.read_text())["weight_map"]
    download_models.download("infinitetalk", folder, hub.fetch, turbo=False)
    assert json.loads(index.read_text())["weight_map"] == first
    assert not (folder / "loras").exists()


def test_the_mark_of_completeness_tells_what_was_got(tmp_path: Path) -> None:
    hub = Hub(tmp_path / "hub", sharded=False)
    folder = tmp_path / "multitalk"
    assert not download_models.is_complete("multitalk", folder)
    download_models.download("multitalk", folder, hub.fetch, turbo=False)
    assert download_models.is_complete("multitalk", folder, turbo=False)
    assert not download_models.is_complete("multitalk", folder)
    assert not list(folder.rglob("*.part"))


def test_a_run_that_is_broken_off_does_not_pass_for_complete(tmp_path: Path) -> None:
    hub = Hub(tmp_path / "hub", sharded=False)
    folder = tmp_path / "multitalk"
    download_models.download("multitalk", folder, hub.fetch)

    def cut(repository: str, patterns: tuple[str, ...], revision: str | None, into: Path) -> None:
        raise ConnectionError

    with pytest.raises(ConnectionError):
        download_models.download("multitalk", folder, cut)
    assert not download_models.is_complete("multitalk", folder)


def test_audio_weights_are_cut_off_with_a_word_about_it(tmp_path: Path) -> None:
    hub = Hub(tmp_path / "hub", sharded=False)
    published = download_models.PRESETS["multitalk"]
    path = hub.root / published.repository / published.file
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(EOFError, match="run this again"):
        download_models.download("multitalk", tmp_path / "multitalk", hub.fetch)


def test_neither_torch_nor_the_engine_has_to_be_installed(tmp_path: Path) -> None:
    hub = Hub(tmp_path / "hub", sharded=True)
    transformer = tmp_path / "transformer"
    shutil.copytree(hub.root / download_models.WAN / "transformer", transformer)
    published = download_models.PRESETS["multitalk"]
    # A module that is None cannot be imported; -I keeps the checkout off the path.
    code = """
import runpy, sys
from pathlib import Path
absent = "engine torch numpy safetensors pluggy hydra omegaconf diffusers huggingface_hub"
sys.modules.update(dict.fromkeys(absent.split()))
add_audio = runpy.run_path(sys.argv[1])["add_audio"]
add_audio(Path(sys.argv[2]), Path(sys.argv[3]))
"""
    words = (download_models.__file__, transformer, hub.root / published.repository / published.file)
    subprocess.run([sys.executable, "-I", "-c", code, *map(str, words)], check=True)
    index = json.loads((transformer / "diffusion_pytorch_model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == hub.state.keys()


def test_every_model_that_is_not_packaged_names_its_command() -> None:
    from engine.compose import compose

    for name in ("multitalk", "infinitetalk"):
        assert compose([f"model={name}"]).model.command.endswith(f"--preset {name}")
        assert name in download_models.PRESETS
