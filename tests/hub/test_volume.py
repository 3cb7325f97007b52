"""What was downloaded is verified, listed and pruned, and nobody's own files are touched."""

from __future__ import annotations

import json
import os
import pickle
import random
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_server import HubServer, hub_server, write_manifest

from engine.cli.main import main
from engine.cli.models import pull_parser
from engine.errors import ConfigError, MissingWeights, SourceError
from engine.hub.check import verify
from engine.hub.manifest import STORED, Manifest, read_manifest
from engine.hub.prune import removable, remove, states
from engine.hub.pull import Options, pull
from engine.hub.record import COMPLETE, PRIVATE
from engine.text.amounts import amount

ROOT = Path(__file__).parents[2]
CHANCE = random.Random(3)
FILES = {
    "acme/dense": {"dense.safetensors": CHANCE.randbytes(40_000)},
    "acme/int8": {"quant/int8.safetensors": CHANCE.randbytes(20_000), "quant/map.json": b'{"b": 2}'},
    "acme/shared": {"vae.pth": CHANCE.randbytes(9_000)},
}


@pytest.fixture(scope="module")
def server() -> Iterator[HubServer]:
    with hub_server(FILES) as running:
        yield running


@pytest.fixture
def manifest(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> Manifest:
    monkeypatch.setenv("HF_ENDPOINT", server.hub)
    return Manifest(table(server))


def table(server: HubServer) -> dict[str, Any]:
    return server.manifest(m_int8=["int8", "shared"], m=["dense", "shared"], other=["shared"])


@pytest.fixture
def words(server: HubServer, manifest: Manifest, tmp_path: Path) -> list[str]:
    path = write_manifest(tmp_path / "manifest.yaml", table(server))
    return ["--model-path", str(tmp_path / "models"), "--manifest", str(path)]


def findings(folder: Path, *presets: Any, **settings: Any) -> dict[str, str]:
    return {finding.file: finding.kind for finding in verify(presets, folder, **settings)}


def test_what_is_as_it_was_gives_no_finding(manifest: Manifest, tmp_path: Path) -> None:
    wanted = manifest.preset("m_int8")
    folder = pull(wanted, tmp_path)
    assert not findings(folder, wanted)
    assert not findings(folder, wanted, quick=True)


def test_each_kind_of_damage_is_named(manifest: Manifest, tmp_path: Path) -> None:
    presets = [manifest.preset(name) for name in ("m", "m_int8")]
    for wanted in presets:
        folder = pull(wanted, tmp_path)
    dense, int8 = folder / "dense.safetensors", folder / "quant" / "int8.safetensors"
    content = dense.read_bytes()
    stat = dense.stat()
    dense.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    # One flipped bit under the old time is seen only by reading.
    os.utime(dense, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert findings(folder, *presets, quick=True) == {}
    assert findings(folder, *presets) == {"dense.safetensors": "corrupt"}
    dense.write_bytes(content[:-1])
    int8.write_bytes((folder / "vae.pth").read_bytes() + bytes(11_000))
    (folder / "quant" / "map.json").unlink()
    (folder / "mine.safetensors").write_bytes(b"mine")
    assert findings(folder, *presets) == {
        "dense.safetensors": "truncated",
        "quant/int8.safetensors": "corrupt",
        "quant/map.json": "missing",
        "mine.safetensors": "foreign",
    }


def test_swapped_files_are_told_where_they_belong(manifest: Manifest, tmp_path: Path) -> None:
    wanted = manifest.preset("m")
    folder = pull(wanted, tmp_path)
    vae, dense = folder / "vae.pth", folder / "dense.safetensors"
    vae.rename(folder / "between")
    dense.rename(vae)
    (folder / "between").rename(dense)
    (small, large) = sorted(verify([wanted], folder), key=lambda finding: finding.file)
    assert (small.file, small.kind) == ("dense.safetensors", "truncated")
    assert (large.file, large.kind, large.detail) == ("vae.pth", "swapped", "contains the data of dense.safetensors")


def test_verify_takes_the_mark_from_what_is_damaged_alone(manifest: Manifest, tmp_path: Path) -> None:
    presets = [manifest.preset(name) for name in ("m", "m_int8")]
    for wanted in presets:
        folder = pull(wanted, tmp_path)
    (folder / "dense.safetensors").unlink()
    verify(presets, folder)
    assert (folder / COMPLETE).read_text().split() == ["m_int8"]


def test_damage_that_only_reading_finds_is_repaired(manifest: Manifest, tmp_path: Path) -> None:
    wanted = manifest.preset("m")
    folder = pull(wanted, tmp_path)
    path = folder / "vae.pth"
    stat, content = path.stat(), path.read_bytes()
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert findings(folder, wanted) == {"vae.pth": "corrupt"}
    with pytest.raises(SourceError, match=r"needed names in .*: vae\.pth"):
        pull(wanted, tmp_path)
    pull(wanted, tmp_path, Options(repair=True))
    assert path.read_bytes() == content
    assert not findings(folder, wanted)


def test_what_came_first_is_remembered_after_it_was_pruned(
    manifest: Manifest, server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("m", "m_int8"):
        folder = pull(manifest.preset(name), tmp_path)
    remove(removable(manifest, tmp_path, ["m_int8"]), tmp_path)
    monkeypatch.setitem(server.files["acme/dense"], "dense.safetensors", bytes(40_000))
    with pytest.raises(SourceError, match="another file"):
        pull(manifest.preset("m"), tmp_path)
    # A file of one's own under that name is not taken for what once was there.
    (folder / "dense.safetensors").write_bytes(b"mine")
    assert not removable(manifest, tmp_path, ["m_int8"])


def test_states_tell_what_is_there(manifest: Manifest, tmp_path: Path) -> None:
    pull(manifest.preset("m_int8"), tmp_path)
    found = {state.preset: state for state in states(manifest, tmp_path)}
    assert {name: state.state for name, state in found.items()} == {
        "m_int8": "complete",
        "m": "partial",
        "other": "absent",
    }
    assert found["m"].there == len(FILES["acme/shared"]["vae.pth"])
    assert found["m_int8"].exact


def test_prune_takes_what_no_preset_in_use_needs_and_leaves_strangers(manifest: Manifest, tmp_path: Path) -> None:
    for name in ("m", "m_int8"):
        folder = pull(manifest.preset(name), tmp_path)
    (folder / "mine.safetensors").write_bytes(b"mine")
    (folder / PRIVATE / "parts").mkdir(exist_ok=True)
    (folder / PRIVATE / "parts" / "left").write_bytes(b"half")
    assert [item.why for item in removable(manifest, tmp_path)] == ["unfinished"]
    found = removable(manifest, tmp_path, ["m_int8"])
    assert {(item.path.name, item.why) for item in found} == {("dense.safetensors", "unneeded"), ("left", "unfinished")}
    assert remove(found, tmp_path) == 40_004
    assert not findings(folder, manifest.preset("m_int8")).keys() - {"mine.safetensors"}
    assert (folder / COMPLETE).read_text().split() == ["m_int8"]
    (stranger,) = removable(manifest, tmp_path, ["m_int8"], foreign=True)
    assert (stranger.path.name, stranger.why) == ("mine.safetensors", "foreign")


def test_prune_needs_to_know_what_is_in_use(manifest: Manifest, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--keep"):
        removable(manifest, tmp_path)


def test_folders_that_prune_empties_go_too(manifest: Manifest, tmp_path: Path) -> None:
    for name in ("m", "m_int8"):
        folder = pull(manifest.preset(name), tmp_path)
    remove(removable(manifest, tmp_path, ["m"]), tmp_path)
    assert not (folder / "quant").exists()


def test_the_command_line_goes_the_whole_way(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["models", "pull", *words]) == 0
    told = capsys.readouterr()
    assert told.out == f"{tmp_path / 'models' / 'm'}\n"
    assert "use it with: model=m_int8" in told.err
    assert main(["models", "pull", "--preset", "m", *words]) == 0
    assert main(["models", "verify", *words]) == 0
    assert "all is well" in capsys.readouterr().out
    assert main(["models", "list", "--json", *words]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [preset["state"] for preset in listed["presets"]] == ["complete", "complete", "absent"]
    (tmp_path / "models" / "m" / "vae.pth").unlink()
    assert main(["models", "verify", "--json", "--quick", *words]) == 1
    found = json.loads(capsys.readouterr().out)["folders"]
    assert [(one["file"], one["kind"]) for one in found[str(tmp_path / "models" / "m")]] == [("vae.pth", "missing")]
    monkeypatch.setenv("COLUMNS", "60")
    assert main(["models", "verify", "--quick", *words]) == 1
    assert main(["models", "prune", "--keep", "m_int8", *words]) == 2
    shown = capsys.readouterr()
    assert "--yes" in shown.err
    # A path stays whole.
    assert not [line for line in shown.out.splitlines() if len(line) > 60 and not line.lstrip().startswith("/")]
    assert (tmp_path / "models" / "m" / "dense.safetensors").exists()
    assert main(["models", "prune", "--keep", "m_int8", "--yes", *words]) == 0
    assert not (tmp_path / "models" / "m" / "dense.safetensors").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["pull", "--preset", "mx"], "no preset named 'mx'; known: m_int8, m, other"),
        (["pull", "--with", "wing"], "--with: no part named 'wing'"),
        (["pull", "--without", "dense"], "--without: no part named 'dense'; known: int8, shared"),
        (["pull", "--workers", "0"], "--workers: 0 workers"),
        (["fetch"], "no command named 'fetch'; multitalk models pull|verify|list|prune"),
        ([], "no command"),
    ],
)
def test_a_wrong_word_is_one_line(
    words: list[str], given: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", *given, *(words if given[1:] else [])]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_parts_can_be_added_and_left_out(manifest: Manifest, tmp_path: Path) -> None:
    less = manifest.preset("m_int8", without=["shared"])
    folder = pull(less, tmp_path)
    assert not (folder / "vae.pth").exists()
    more = manifest.preset("m_int8", extra=["dense"])
    pull(more, tmp_path)
    assert (folder / "dense.safetensors").exists()
    assert [item.why for item in removable(manifest, tmp_path)] == []


def test_a_manifest_that_is_none_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("default: one\n")
    with pytest.raises(ConfigError, match=r"mine\.yaml is not a valid manifest"):
        read_manifest(path)


@pytest.mark.parametrize("place", ["checkout", "elsewhere"])
def test_the_script_needs_huggingface_hub_alone(words: list[str], tmp_path: Path, place: str) -> None:
    # A module that is None cannot be imported; -I keeps the checkout and the user's packages off the path.
    code = """
import runpy, sys
sys.modules.update(dict.fromkeys("torch numpy safetensors pluggy hydra omegaconf diffusers transformers".split()))
script, sys.argv = sys.argv[1], sys.argv[1:]
runpy.run_path(script, run_name="__main__")
"""
    script = str(ROOT / "scripts" / "download_models.py")
    if place == "elsewhere":
        # As in the image, where the engine is installed.
        script = shutil.copy(script, str(tmp_path / "download_models.py"))
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, script, *words], capture_output=True, text=True, check=False, env=os.environ
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'models' / 'm'}\n"
    assert (tmp_path / "models" / "m" / COMPLETE).exists()


# --- the manifest of the package --------------------------------------------------------------------------------------


def test_every_preset_is_whole_and_its_places_are_its_own() -> None:
    for folder in {preset.folder for preset in read_manifest().presets()}:
        places: dict[str, str] = {}
        for preset in read_manifest().presets():
            if preset.folder != folder:
                continue
            assert len({file.to for file in preset.files}) == len(preset.files), preset.name
            for file in preset.files:
                assert places.setdefault(file.to, file.key) == file.key, file.to


def test_the_default_fits_a_volume_of_100_gb_and_every_other_tells_its_size() -> None:
    manifest = read_manifest()
    assert manifest.preset(manifest.default).size < 40e9
    for preset in manifest.presets():
        assert preset.size < 100e9, preset.name


def test_hashes_and_commits_are_of_their_form() -> None:
    for preset in read_manifest().presets():
        for file in preset.files:
            assert file.size > 0
            assert file.exact == bool(file.sha256), file.key
            assert len(file.sha256) in (0, 64)
            assert file.revision == "main" or len(file.revision) == 40


def test_models_read_the_preset_that_their_quantisation_names() -> None:
    manifest = read_manifest()
    chosen = {
        (model, quant): preset.name if (preset := manifest.preset_of(model, quant)) else None
        for model in ("multitalk", "infinitetalk", "tiny")
        for quant in ("none", "int8", "int8-quanto", "gguf")
    }
    assert chosen == {
        ("multitalk", "none"): "multitalk",
        ("multitalk", "int8"): "multitalk",
        ("multitalk", "int8-quanto"): "multitalk-int8",
        # Not published.
        ("multitalk", "gguf"): None,
        ("infinitetalk", "gguf"): None,
        ("tiny", "gguf"): None,
        ("infinitetalk", "none"): "infinitetalk",
        ("infinitetalk", "int8"): "infinitetalk",
        ("infinitetalk", "int8-quanto"): "infinitetalk-int8",
        ("tiny", "none"): None,
        ("tiny", "int8"): None,
        ("tiny", "int8-quanto"): None,
    }


#: Overrides -> what is named where nothing is found: presets, the one to take first, and what to add to use them.
OFFERED: dict[str, list[tuple[str, str]]] = {
    "model=multitalk": [("multitalk-int8", "quant=int8-quanto"), ("multitalk", "")],
    # Quantised while it is loaded, from the files in 32 bits.
    "model=multitalk quant=int8": [("multitalk-int8", "quant=int8-quanto"), ("multitalk", "")],
    "recipe=card-24gb": [("multitalk-int8", "")],
    "recipe=card-80gb": [("multitalk-int8", "quant=int8-quanto"), ("multitalk", "")],
    "model=infinitetalk": [("infinitetalk-int8", "quant=int8-quanto"), ("infinitetalk", "")],
    "model=infinitetalk quant=fp8-quanto": [("infinitetalk-fp8", "")],
    # Nothing of the kind is published for this folder.
    "model=multitalk quant=fp8-quanto": [("multitalk-fp8-fusionx", "model.folder=multitalk-fusionx")],
    "model=multitalk quant=gguf": [("multitalk-int8", "quant=int8-quanto")],
    "model=multitalk model.folder=multitalk-720p resolution=720p": [("multitalk-720p", "")],
    "model=multitalk model.folder=multitalk-720p": [("multitalk-720p", "resolution=720p")],
    "model=multitalk model.folder=mine": [("multitalk", "model.folder=multitalk")],
}


@pytest.mark.parametrize("overrides", OFFERED)
def test_missing_weights_name_the_presets_that_serve_the_config(
    overrides: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engine.assembly.compose import compose
    from engine.assembly.location import locate_weights
    from engine.plugin.manager import installed

    monkeypatch.setenv("MODEL_PATH", str(tmp_path))
    with pytest.raises(MissingWeights) as caught:
        locate_weights(compose(overrides.split()), installed())
    found = []
    for command, note in caught.value.commands:
        # By what reads it where the package is installed.
        program, group, verb, *words = shlex.split(command)
        assert (program, group, verb) == ("multitalk", "models", "pull")
        given = pull_parser("multitalk models pull").parse_args(words)
        preset = read_manifest().preset(given.preset)
        assert given.model_path == tmp_path
        assert amount(preset.size) in note
        found.append((preset.name, note.partition(", used with ")[2]))
        # With what is to be added, what the command brings is what the config reads.
        config = compose([*overrides.split(), *found[-1][1].split()])
        assert (config.model.folder, config.model.name) == (preset.folder, preset.words["model"])
        assert config.quant.name == preset.words["quant"] or {config.quant.name, preset.words["quant"]} == {
            "int8",
            "none",
        }
    assert found == OFFERED[overrides]
    assert str(caught.value).count("\n") == 0
    assert caught.value.hint.startswith(f"get them with: {caught.value.commands[0][0]} (")


def test_weights_are_pulled_to_where_the_source_looks(tmp_path: Path) -> None:
    from engine.assembly.compose import compose
    from engine.assembly.location import locate_weights
    from engine.plugin.manager import installed

    folder = tmp_path / "my models"
    with pytest.raises(MissingWeights) as caught:
        locate_weights(compose(["recipe=card-24gb", "source=volume", f"source.path='{folder}'"]), installed())
    ((command, _),) = caught.value.commands
    assert pull_parser("pull").parse_args(shlex.split(command)[3:]).model_path == folder


def test_missing_weights_are_told_over_several_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "multitalk").mkdir()
    request = ["--image", "engine/examples/one.png", "--audio", "engine/examples/one.flac", "--prompt", "x"]
    words = ["recipe=card-24gb", "device=cpu", "source=volume", f"source.path={tmp_path}"]
    assert main(["generate", *request, *words]) == 2
    first, *lines = capsys.readouterr().err.splitlines()
    assert first == f"multitalk: error: source: weights of 'multitalk' in {tmp_path}/multitalk are incomplete"
    assert lines[0] == "  missing    a file with a transformer of quant=int8-quanto"
    assert lines[-2] == f"  get them   multitalk models pull --preset multitalk-int8 --model-path {tmp_path}"
    assert lines[-1] == "             about 31.9 GB"


def test_what_is_missing_is_named_by_the_first_few() -> None:
    error = MissingWeights("they are gone", missing=[f"part-{number}" for number in range(8)], hint="look for them")
    assert error.what == "they are gone, missing: part-0, part-1, part-2, part-3, part-4, and 3 more"
    assert [line.split() for line in error.lines()[-2:]] == [["and", "3", "more"], ["look", "for", "them"]]
    assert pickle.loads(pickle.dumps(error)).lines() == error.lines()


def test_what_is_not_read_of_a_quantised_file_reads_those_in_32_bits() -> None:
    from engine.loading.layout import QUANTISED

    assert set(STORED) == set(QUANTISED)


def test_the_lora_of_turbo_is_where_the_model_looks_for_it() -> None:
    from engine.assembly.compose import compose

    model = compose(["model=multitalk"]).model
    places = {file.to for file in read_manifest().preset("multitalk").files}
    assert {lora.file for lora in model.turbo.loras} <= places
    # The distilled one is no part of a preset: it is added.
    assert model.distilled is not None
    places = {file.to for file in read_manifest().preset("multitalk", extra=["lora-distilled"]).files}
    assert {lora.file for lora in model.distilled.loras} <= places


def test_the_distilled_lora_has_a_revision_a_size_and_a_hash() -> None:
    files = read_manifest().preset("multitalk", extra=["lora-distilled"]).files
    (lora,) = [file for file in files if file.part == "lora-distilled"]
    assert (lora.exact, len(lora.revision), lora.licence) == (True, 40, "Apache-2.0")
