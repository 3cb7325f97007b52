"""The bench of loading, in small: what it writes, drops, compares and says; never how fast it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from engine.bench import load as bench
from engine.bench.load import drop, load_ours, load_theirs, read_fresh, read_plain, resident, write_checkpoint
from engine.cli.bench import bench as command
from engine.errors import RequestError
from engine.loading.component_files import ComponentFiles
from engine.loading.layout import part_in
from engine.loading.safetensors_reader import BUFFER, AheadReader
from plugins.families.multitalk.transformer import MultiTalkTransformer3DModel


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("checkpoint")
    write_checkpoint(root / "transformer", 0.03)
    return root


def test_checkpoint_is_of_the_size_asked_for_and_in_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "_SHARD", 2**23)
    write_checkpoint(tmp_path / "transformer", 0.06)

    files = sorted(tmp_path.glob("*/*.safetensors"))
    read = {name: tensor for file in files for name, tensor in load_file(file).items()}

    assert len(files) > 3
    assert 0.03e9 < sum(tensor.nbytes for tensor in read.values()) < 0.09e9
    assert all(tensor.isfinite().all() and tensor.std() < 0.1 for tensor in read.values() if tensor.numel() > 1)


def test_all_ways_of_loading_come_to_the_same(root: Path) -> None:
    ours = load_ours(root, "bfloat16", AheadReader()).state_dict()
    fresh = read_fresh(
        ComponentFiles(
            part_in(root / "transformer", "transformer"),
            "transformer",
            torch.bfloat16,
            network=MultiTalkTransformer3DModel,
        )
    )
    theirs = load_theirs(root, "bfloat16").state_dict()

    assert ours.keys() == fresh.keys() == theirs.keys()
    assert all(torch.equal(tensor, fresh[name]) for name, tensor in ours.items())
    # Theirs casts what we keep in float32, too.
    assert all(torch.equal(tensor.bfloat16(), theirs[name]) for name, tensor in ours.items())


def test_a_dropped_file_is_out_of_memory_and_a_read_one_is_in_it(root: Path) -> None:
    files = sorted(root.glob("*/*.safetensors"))

    drop(files)
    assert max(map(resident, files)) < 0.01
    read_plain(files)
    assert min(map(resident, files)) > 0.99


def test_files_that_stay_in_memory_are_never_called_cold(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "resident", lambda _file: 0.5)

    with pytest.raises(RequestError, match="50% of a file stay in memory"):
        drop(sorted(root.glob("*/*.safetensors")))


@pytest.mark.slow
def test_command_prints_ratios_memory_and_bars(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["load", "--size", "0.03", "--rounds", "1", "--folder", str(tmp_path)]) == 0
    report = json.loads(capsys.readouterr().out)

    assert report["ratios"].keys() == {"cold", "warm", "libraries_cold", "libraries_warm"}
    assert all(len(seconds) == 1 and seconds[0] > 0 for seconds in report["seconds"].values())
    memory = report["memory"]
    assert memory["buffer_bytes"] == BUFFER
    assert report["checkpoint"]["bytes"] / 2 < memory["model_bytes"] < report["checkpoint"]["bytes"]
    assert memory["above_bytes"] <= memory["largest_bytes"] + BUFFER
    assert [bar["name"] for bar in report["bars"]] == [bar.name for bar in bench.BARS]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("change", [{"size": 0.0}, {"rounds": 0}, {"dtype": "float16"}, {"size": 1e9}])
def test_what_cannot_be_measured_is_an_error(change: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(RequestError):
        bench.run(**{"size": 0.03, "folder": str(tmp_path), **change})  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
