"""Sources find weights, or say file by file what is missing and where was looked."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from engine.components import ModelSource
from engine.config import ComponentConfig
from engine.data import Weights
from engine.errors import ConfigError, SourceError, UnknownComponent
from engine.register import Register
from plugins.sources import auto, packaged, volume

TINY = Weights("tiny", "tiny", ("transformer", "vae", "text_encoder", "tokenizer"), packaged=True)
BIG = Weights("multitalk", "multitalk", ("transformer", "tokenizer"), command="python scripts/download_models.py")


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Register[ModelSource]:
    monkeypatch.setenv("MODEL_PATH", str(tmp_path))
    register: Register[ModelSource] = Register("source")
    for plugin in (auto, packaged, volume):
        plugin.register_sources(register)
    return register


def build(register: Register[ModelSource], config: type[ComponentConfig], **values: object) -> ModelSource:
    made = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(config), values))
    assert isinstance(made, ComponentConfig)
    return register.build(made)


def fill(root: Path, weights: Weights) -> Path:
    for component in weights.components:
        folder = root / weights.folder / component
        folder.mkdir(parents=True)
        if component == "tokenizer":
            (folder / "tokenizer_config.json").write_text("{}")
            continue
        (folder / "config.json").write_text("{}")
        stem = "diffusion_pytorch_model" if component in ("transformer", "vae") else "model"
        (folder / f"{stem}.safetensors").write_bytes(b"weights")
    return root / weights.folder


def test_packaged_finds_the_tiny_model_without_any_setting(sources: Register[ModelSource]) -> None:
    folder = build(sources, packaged.PackagedConfig).locate(TINY)
    assert folder is not None
    assert (folder / "transformer" / "config.json").is_file()


def test_packaged_passes_on_models_that_do_not_ship(sources: Register[ModelSource]) -> None:
    source = build(sources, packaged.PackagedConfig)
    assert source.locate(BIG) is None
    assert "does not ship" in source.looked(BIG)


def test_packaged_names_each_file_a_broken_install_lacks(tmp_path: Path) -> None:
    folder = fill(tmp_path, TINY)
    (folder / "vae" / "config.json").unlink()
    (folder / "text_encoder" / "model.safetensors").write_bytes(b"")
    with pytest.raises(SourceError, match=r"text_encoder/model\.safetensors") as caught:
        packaged.Packaged(packaged.PackagedConfig(), tmp_path).locate(TINY)
    assert "vae/config.json" in caught.value.what


def test_volume_path_comes_from_the_environment(sources: Register[ModelSource], tmp_path: Path) -> None:
    folder = fill(tmp_path, BIG)
    assert build(sources, volume.VolumeConfig).locate(BIG) == folder


def test_volume_path_on_the_command_line_beats_the_environment(sources: Register[ModelSource], tmp_path: Path) -> None:
    folder = fill(tmp_path / "elsewhere", BIG)
    assert build(sources, volume.VolumeConfig, path=str(tmp_path / "elsewhere")).locate(BIG) == folder


def test_volume_without_the_folder_passes_and_says_where_it_looked(
    sources: Register[ModelSource], tmp_path: Path
) -> None:
    source = build(sources, volume.VolumeConfig)
    assert source.locate(BIG) is None
    assert str(tmp_path / "multitalk") in source.looked(BIG)


def test_incomplete_volume_names_each_missing_file_and_the_command(
    sources: Register[ModelSource], tmp_path: Path
) -> None:
    folder = fill(tmp_path, BIG)
    (folder / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    (folder / "tokenizer" / "tokenizer_config.json").unlink()
    with pytest.raises(SourceError) as caught:
        build(sources, volume.VolumeConfig).locate(BIG)
    assert "transformer/diffusion_pytorch_model.safetensors" in caught.value.what
    assert "tokenizer/tokenizer_config.json" in caught.value.what
    assert str(folder) in caught.value.what
    assert BIG.command in caught.value.hint


def test_missing_shard_of_an_index_is_named(sources: Register[ModelSource], tmp_path: Path) -> None:
    folder = fill(tmp_path, BIG) / "transformer"
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "part-1.safetensors", "b": "part-2.safetensors"}}'
    )
    (folder / "part-1.safetensors").write_bytes(b"weights")
    with pytest.raises(SourceError, match=r"missing: transformer/part-2\.safetensors$|part-2\.safetensors;") as caught:
        build(sources, volume.VolumeConfig).locate(BIG)
    assert "part-1" not in caught.value.what


def test_auto_prefers_the_volume_and_says_what_it_chose(
    sources: Register[ModelSource], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = fill(tmp_path, TINY)
    with caplog.at_level(logging.INFO):
        assert build(sources, auto.AutoConfig).locate(TINY) == folder
    assert f"source volume has the weights of tiny: {folder}" in caplog.text


def test_auto_ends_in_the_package_for_packaged_models_only(sources: Register[ModelSource]) -> None:
    source = build(sources, auto.AutoConfig)
    folder = source.locate(TINY)
    assert folder is not None
    assert folder.name == "tiny"
    assert source.locate(BIG) is None


def test_auto_does_not_pass_over_an_incomplete_volume(sources: Register[ModelSource], tmp_path: Path) -> None:
    folder = fill(tmp_path, TINY)
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(SourceError, match=r"vae/diffusion_pytorch_model\.safetensors"):
        build(sources, auto.AutoConfig).locate(TINY)


def test_auto_tells_every_place_it_looked(sources: Register[ModelSource], tmp_path: Path) -> None:
    looked = build(sources, auto.AutoConfig).looked(BIG)
    assert f"volume: folder {tmp_path / 'multitalk'}" in looked
    assert "packaged: the package, which does not ship this model" in looked


def test_auto_takes_any_registered_chain(sources: Register[ModelSource]) -> None:
    source = build(sources, auto.AutoConfig, chain=["packaged"])
    assert source.looked(TINY).startswith("packaged: ")


def test_auto_with_an_unknown_member_lists_the_installed(sources: Register[ModelSource]) -> None:
    with pytest.raises(UnknownComponent, match="no source named 'cellar'; installed: auto, packaged, volume"):
        build(sources, auto.AutoConfig, chain=["cellar"])


@pytest.mark.parametrize("chain", [[], ["auto"]])
def test_auto_refuses_a_chain_that_leads_nowhere(sources: Register[ModelSource], chain: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"source\.chain"):
        build(sources, auto.AutoConfig, chain=chain)
