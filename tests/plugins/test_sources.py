"""Sources find weights, or say file by file what is missing and where was looked."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import COMMIT, HubServer, hub_server, write_manifest
from omegaconf import OmegaConf

from engine.components import FetchingSource, ModelSource
from engine.config import ComponentConfig
from engine.data import Weights
from engine.errors import ConfigError, SourceError, UnknownComponent
from engine.hub.manifest import Manifest, read_manifest
from engine.loading.diffusers_folder import missing_files
from engine.plugin.register import Register
from plugins.sources import auto, cached, download, hub, packaged, volume

TINY = Weights("tiny", "tiny", ("transformer", "vae", "text_encoder", "tokenizer"), packaged=True)
BIG = Weights("multitalk", "multitalk", ("transformer", "tokenizer"), commands=(("multitalk models pull", "1 GB"),))


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Register[ModelSource]:
    monkeypatch.setenv("MODEL_PATH", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    register: Register[ModelSource] = Register("source")
    for plugin in (auto, cached, download, hub, packaged, volume):
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
    assert "does not contain" in source.looked(BIG)


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
    assert caught.value.hint == "get them with: multitalk models pull (1 GB)"


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
    assert "packaged: the package, which does not contain this model" in looked


def test_auto_takes_any_registered_chain(sources: Register[ModelSource]) -> None:
    source = build(sources, auto.AutoConfig, chain=["packaged"])
    assert source.looked(TINY).startswith("packaged: ")


def test_auto_with_an_unknown_member_lists_the_installed(sources: Register[ModelSource]) -> None:
    with pytest.raises(
        UnknownComponent, match="no source named 'cellar'; installed: auto, cached, download, hub, packaged, volume"
    ):
        build(sources, auto.AutoConfig, chain=["cellar"])


def test_auto_passes_over_a_usual_source_whose_plugin_was_taken_away() -> None:
    few = Register[ModelSource]("source")
    packaged.register_sources(few)
    auto.register_sources(few)

    assert list(few.build(auto.AutoConfig()).sources) == ["packaged"]  # type: ignore[attr-defined]


@pytest.mark.parametrize("chain", [[], ["auto"]])
def test_auto_refuses_a_chain_that_leads_nowhere(sources: Register[ModelSource], chain: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"source\.chain"):
        build(sources, auto.AutoConfig, chain=chain)


# --- published weights ------------------------------------------------------------------------------------------------


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub on loopback that publishes all of BIG in two repositories, and a manifest that says so."""
    files = {
        "acme/transformer": {
            "transformer/config.json": b"{}",
            "transformer/diffusion_pytorch_model.safetensors": b"weights" * 1000,
        },
        "acme/tokenizer": {"tokenizer/tokenizer_config.json": b"{}"},
    }
    with hub_server(files) as server:
        table = server.manifest(multitalk=["transformer", "tokenizer"])
        manifest = read_manifest(write_manifest(tmp_path / "manifest.yaml", table))
        monkeypatch.setenv("HF_ENDPOINT", server.hub)

        def ours(_: Path | None = None) -> Manifest:
            return manifest

        for plugin in (hub, download):
            monkeypatch.setattr(plugin, "read_manifest", ours)
        yield server


def put_into_cache(server: HubServer, cache: Path, *repositories: str, commit: str = COMMIT, ref: str = "main") -> Path:
    """Lay repositories out as the hub's library and RunPod do: links in a snapshot to blobs, and a ref."""
    for repository in repositories:
        home = cache / f"models--{repository.replace('/', '--')}"
        for path, content in server.files[repository].items():
            blob = home / "blobs" / f"{abs(hash(content)):x}"
            blob.parent.mkdir(parents=True, exist_ok=True)
            blob.write_bytes(content)
            place = home / "snapshots" / commit / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(blob)
        if ref:
            (home / "refs").mkdir(exist_ok=True)
            (home / "refs" / ref).write_text(commit)
    return cache


def test_the_cached_repository_of_runpod_is_found_by_its_ref(
    sources: Register[ModelSource], published: HubServer, tmp_path: Path
) -> None:
    published.files["acme/whole"] = published.files["acme/transformer"] | published.files["acme/tokenizer"]
    cache = put_into_cache(published, tmp_path / "runpod", "acme/whole")
    source = build(sources, cached.CachedConfig, path=str(cache), repository="acme/whole")
    folder = source.locate(BIG)
    assert folder == cache / "models--acme--whole" / "snapshots" / COMMIT
    assert not missing_files(folder, BIG.components)
    assert build(sources, cached.CachedConfig, path=str(cache)).locate(BIG) is None
    assert build(sources, cached.CachedConfig, path=str(cache), repository="acme/other").locate(BIG) is None


def test_a_cached_repository_without_a_ref_is_its_only_snapshot(
    sources: Register[ModelSource], published: HubServer, tmp_path: Path
) -> None:
    cache = put_into_cache(published, tmp_path / "runpod", "acme/transformer", ref="")
    source = build(sources, cached.CachedConfig, path=str(cache), repository="acme/transformer")
    assert source.locate(BIG) is not None
    put_into_cache(published, cache, "acme/transformer", commit="f" * 40, ref="")
    assert source.locate(BIG) is None


def test_cached_files_of_several_repositories_become_one_folder(
    sources: Register[ModelSource], published: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "links"))
    source = build(sources, hub.HubConfig, caches=[str(tmp_path / "runpod")])
    put_into_cache(published, tmp_path / "runpod", "acme/transformer")
    assert source.locate(BIG) is None
    assert "with 2 of 3 files of multitalk" in source.looked(BIG)
    put_into_cache(published, tmp_path / "hub-cache", "acme/tokenizer")
    folder = source.locate(BIG)
    assert folder is not None
    assert not missing_files(folder, BIG.components)
    assert source.locate(BIG) == folder


def test_what_the_hubs_own_library_cached_is_found(
    sources: Register[ModelSource], published: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import hf_hub_download

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "links"))
    for repository, files in published.files.items():
        for path in files:
            hf_hub_download(
                repository, path, revision=COMMIT, endpoint=published.hub, cache_dir=tmp_path / "hub-cache", token=False
            )
    folder = build(sources, hub.HubConfig).locate(BIG)
    assert folder is not None
    assert not missing_files(folder, BIG.components)


def test_a_plan_downloads_nothing(sources: Register[ModelSource], published: HubServer) -> None:
    source = build(sources, auto.AutoConfig, download=True)
    assert source.locate(BIG) is None
    assert not published.asked


def test_what_is_missing_is_downloaded_if_that_is_allowed(
    sources: Register[ModelSource], published: HubServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    forbidden = build(sources, auto.AutoConfig)
    assert isinstance(forbidden, FetchingSource)
    assert forbidden.fetch(BIG) is None
    allowed = build(sources, auto.AutoConfig, download=True)
    assert isinstance(allowed, FetchingSource)
    with caplog.at_level(logging.INFO):
        assert allowed.fetch(BIG) == tmp_path / "multitalk"
    assert "source download fetched the weights of multitalk" in caplog.text
    assert not missing_files(tmp_path / "multitalk", BIG.components)
    published.asked.clear()
    assert allowed.fetch(BIG) == tmp_path / "multitalk"
    assert not published.asked


def test_weights_are_downloaded_to_be_read_and_not_to_be_looked_for(
    published: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engine.assembly.compose import compose
    from engine.assembly.location import locate_weights
    from engine.plugin.manager import installed

    monkeypatch.setenv("MODEL_PATH", str(tmp_path / "models"))
    config = compose(["model=multitalk", "source.download=true"])
    with pytest.raises(SourceError, match=r"looked in cached: .*; volume: .*; hub: .*; download: "):
        locate_weights(config, installed())
    assert not published.asked
    assert locate_weights(config, installed(), fetch=True) == tmp_path / "models" / "multitalk"


def test_an_incomplete_volume_is_completed_if_that_is_allowed(
    sources: Register[ModelSource], published: HubServer, tmp_path: Path
) -> None:
    (tmp_path / "multitalk" / "transformer").mkdir(parents=True)
    source = build(sources, auto.AutoConfig, download=True)
    with pytest.raises(SourceError, match="incomplete"):
        source.locate(BIG)
    assert isinstance(source, FetchingSource)
    assert source.fetch(BIG) == tmp_path / "multitalk"


def test_offline_nothing_is_downloaded_even_if_it_is_allowed(
    sources: Register[ModelSource], published: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    source = build(sources, auto.AutoConfig, download=True)
    assert isinstance(source, FetchingSource)
    with pytest.raises(SourceError, match="HF_HUB_OFFLINE"):
        source.fetch(BIG)
    assert not published.asked


def test_a_preset_of_another_folder_says_what_to_choose(sources: Register[ModelSource], published: HubServer) -> None:
    source = build(sources, download.DownloadConfig)
    assert isinstance(source, FetchingSource)
    with pytest.raises(SourceError, match=r"belongs in multitalk, and model\.folder is elsewhere"):
        source.fetch(Weights("multitalk", "elsewhere", ("transformer",)))
