"""Weights, quantisation and LoRAs that do not go together are reported before anything is loaded, in one line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from engine import EngineService, Request, Speaker
from engine.assembly.compatibility import check_suited
from engine.assembly.compose import compose
from engine.cli.main import main
from engine.doctor.checks import CheckContext, check_weights
from engine.errors import ConfigError, EngineError, MissingExtra, MissingWeights, SourceError
from engine.plugin.manager import installed
from engine.rehearsal.files import write_sparse
from engine.serving.worker.fitness import UnfitError, checks
from plugins.families.multitalk.model import load_multitalk
from scripts.evaluate_tiny.quantised_folder import write_gguf, write_quanto

ROOT = Path(__file__).parents[2]
TINY = ROOT / "engine" / "weights" / "tiny"
EXAMPLES = ROOT / "engine" / "examples"
PICTURE, VOICE = str(EXAMPLES / "one.png"), str(EXAMPLES / "one.flac")
REQUEST = Request("a person talks", PICTURE, (Speaker(VOICE),), frames=9)
QUERY = "blocks.0.attn1.to_q"


@pytest.fixture(scope="module")
def network() -> Mapping[str, Tensor]:
    return load_file(TINY / "transformer" / "diffusion_pytorch_model.safetensors")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The embedded model's weights below a folder of models, to be added to."""
    below = tmp_path / "models" / "tiny"
    below.mkdir(parents=True)
    for path in TINY.iterdir():
        (below / path.name).symlink_to(path)
    return below


@pytest.fixture
def quanto(folder: Path, network: Mapping[str, Tensor]) -> Path:
    """The same with a quantised transformer beside the plain one."""
    linears = [name.removesuffix(".weight") for name, one in network.items() if name.endswith("to_q.weight")]
    write_quanto(folder / "quant_models", network, linears, torch.int8)
    return folder


def overrides(folder: Path, *more: str) -> list[str]:
    return ["model=tiny", "source=volume", f"source.path={folder.parent}", "device=cpu", *more]


def check(folder: Path, *more: str) -> None:
    check_suited(compose(overrides(folder, *more)), folder, installed())


def lora(folder: Path, network: Mapping[str, Tensor], **entries: Any) -> str:
    """Write a LoRA of the query of the first block, with `entries` in place of its own; return the override."""
    wide, tall = network[f"{QUERY}.weight"].shape
    own = {f"{QUERY}.lora_A.weight": torch.ones(2, tall), f"{QUERY}.lora_B.weight": torch.ones(wide, 2)}
    save_file({name.replace("__", "."): one for name, one in (entries or own).items()}, folder / "own.safetensors")
    return "lora.extra=[{file: own.safetensors}]"


def test_what_goes_together_passes(quanto: Path, network: Mapping[str, Tensor]) -> None:
    extra = lora(quanto, network)
    for quant in ("none", "int8", "int8-quanto"):
        for mode in ("runtime", "merged"):
            check(quanto, f"quant={quant}", f"lora.mode={mode}", extra)
            check(quanto, f"quant={quant}", f"lora.mode={mode}", "sampler=turbo")


@pytest.mark.parametrize("quant", ["int8-quanto", "fp8-quanto", "gguf"])
def test_a_quantised_file_that_is_not_there_is_reported_with_what_would_work(folder: Path, quant: str) -> None:
    with pytest.raises(MissingWeights) as caught:
        check(folder, f"quant={quant}")
    assert f"'tiny' in {folder} cannot be used with quant={quant}" in caught.value.what
    assert f"missing: a file with a transformer of quant={quant}" in caught.value.what
    assert caught.value.hint == f"leave out quant={quant} (a recipe may set it, and recipe=none undoes that)"
    # And that works.
    check(folder)


def test_quantised_weights_are_reported_where_the_config_reads_plain_ones(quanto: Path) -> None:
    (quanto / "transformer").unlink()
    shutil.copy(TINY / "transformer" / "config.json", quanto / "quant_models" / "config.json")
    with pytest.raises(MissingWeights) as caught:
        EngineService(overrides(quanto)).load()
    assert caught.value.hint == "choose quant=int8-quanto, whose files are there"
    check(quanto, "quant=int8-quanto")


def test_a_quantised_file_of_another_name_is_reported_with_those_that_are_there(quanto: Path) -> None:
    with pytest.raises(SourceError) as caught:
        check(quanto, "quant=int8-quanto", "quant.file=other.safetensors")
    assert caught.value.field == "quant.file"
    assert caught.value.hint == "known: quant_models/dit_model_int8.safetensors"
    with pytest.raises(SourceError) as caught:
        check(quanto, "quant=fp8-quanto", "quant.file=other.safetensors")
    assert caught.value.hint.startswith("leave out quant=fp8-quanto")


@pytest.mark.parametrize("quant", ["int8", "int8-quanto"])
def test_a_package_that_keeps_quantised_weights_is_asked_for(
    quanto: Path, quant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(MissingExtra, match="needs the package 'torchao'") as caught:
        check(quanto, f"quant={quant}")
    assert caught.value.hint == "pip install 'multitalk-engine[quant]'"
    check(quanto)


def test_a_lora_that_is_not_there_is_reported_with_the_key_that_names_it(folder: Path) -> None:
    with pytest.raises(SourceError, match=f"no LoRA file {folder}/gone.safetensors") as caught:
        check(folder, "lora.extra=[{file: gone.safetensors}]")
    assert caught.value.hint.startswith("lora.extra refers to it: put the file there")
    (folder / "loras").unlink()
    # Nobody asks for it.
    check(folder)
    with pytest.raises(SourceError, match=r"no LoRA file .*/loras/turbo\.safetensors") as caught:
        check(folder, "sampler=turbo")
    assert "model.turbo.loras ([] for none)" in caught.value.hint
    check(folder, "sampler=turbo", "model.turbo.loras=[]")


def test_a_lora_that_is_cut_short_is_reported(folder: Path, network: Mapping[str, Tensor]) -> None:
    extra = lora(folder, network)
    with (folder / "own.safetensors").open("r+b") as file:
        file.truncate((folder / "own.safetensors").stat().st_size - 10)
    with pytest.raises(SourceError, match=r"own\.safetensors is damaged"):
        check(folder, extra)


#: Entries of a LoRA, what is told, and with which mode of LoRAs.
WRONG: dict[str, tuple[dict[str, Tensor], str, str]] = {
    "of another network": ({"unet.down.0.lora_A.weight": torch.ones(2, 3)}, "no entry of the LoRA matches", "runtime"),
    "of another block": (
        {f"blocks.99.attn1.to_q.lora_{half}.weight": torch.ones(2, 2) for half in "AB"},
        "no entry of the LoRA matches",
        "runtime",
    ),
    "of a wider network": (
        {f"{QUERY}.lora_A.weight": torch.ones(2, 5120), f"{QUERY}.lora_B.weight": torch.ones(5120, 2)},
        r"blocks\.0\.attn1\.to_q\.lora_A\.weight does not fit a tensor of \(\d+, \d+\)",
        "merged",
    ),
    "half a pair": ({f"{QUERY}.lora_A.weight": torch.ones(2, 2)}, "is half of a pair", "runtime"),
    "of another kind": ({f"{QUERY}.dora_scale": torch.ones(2, 2)}, "is of an unsupported adapter", "runtime"),
    "for more than half another network": (
        {f"blocks.{index}.attn1.to_q.diff_b": torch.ones(160) for index in range(4, 8)},
        "3 of 4 entries match no tensor",
        "merged",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_lora_that_does_not_fit_is_reported_as_loading_reports_it(
    folder: Path, network: Mapping[str, Tensor], name: str
) -> None:
    entries, text, mode = WRONG[name]
    extra = lora(folder, network, **entries)
    with pytest.raises(SourceError, match=text) as early:
        check(folder, extra, f"lora.mode={mode}")
    assert "own.safetensors" in early.value.what
    path = folder / "own.safetensors"
    with pytest.raises(SourceError, match=text) as late:
        load_multitalk(folder, device="cpu", dtype="float32", loras=[(path, 1.0)], lora_mode=mode)
    assert late.value.hint == early.value.hint


def test_a_gguf_file_takes_no_merged_lora(folder: Path, network: Mapping[str, Tensor]) -> None:
    pytest.importorskip("gguf")
    write_gguf(folder / "transformer.gguf", {name: one.float() for name, one in network.items()})
    extra = lora(folder, network)
    check(folder, "quant=gguf", extra)
    with pytest.raises(ConfigError, match="LoRAs cannot be merged into a GGUF file") as caught:
        check(folder, "quant=gguf", extra, "lora.mode=merged")
    assert caught.value.hint == "use lora.mode=runtime"
    check(folder, "quant=gguf", "lora.mode=merged")
    # By name alone: what its tensors are packed into is not looked at.
    with pytest.raises(SourceError, match="no entry of the LoRA matches"):
        check(folder, "quant=gguf", lora(folder, network, **WRONG["of another block"][0]))


def test_audio_weights_of_another_name_are_reported(folder: Path, network: Mapping[str, Tensor]) -> None:
    from engine.loading.key_map import is_audio

    (folder / "transformer").unlink()
    wan = folder / "base"
    wan.mkdir()
    save_file({name: one for name, one in network.items() if not is_audio(name)}, wan / "wan.safetensors")
    with pytest.raises(MissingWeights, match=r"missing: multitalk\.safetensors"):
        check(folder)
    save_file({name: one for name, one in network.items() if is_audio(name)}, folder / "audio.safetensors")
    check(folder)
    with pytest.raises(MissingWeights, match=r"missing: single/infinitetalk\.safetensors"):
        check(folder, "model.adapter=single/infinitetalk.safetensors")


# --- who asks ---------------------------------------------------------------------------------------------------------

#: Overrides that compose and cannot work, and the beginning of what is told.
UNSUITED = {
    "a recipe for cards": ["recipe=card-24gb", "model=tiny", "device=cpu"],
    "a quantised file": ["model=tiny", "device=cpu", "quant=gguf"],
    "a file by name": ["model=tiny", "device=cpu", "quant=int8-quanto", "quant.file=x.safetensors"],
    "a LoRA": ["model=tiny", "device=cpu", "lora.extra=[{file: gone.safetensors}]"],
}


@pytest.mark.parametrize("name", UNSUITED)
def test_plan_doctor_health_fitness_and_generation_report_the_same(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    given = UNSUITED[name]
    service = EngineService(given)
    with pytest.raises(EngineError) as caught:
        service.generate(REQUEST)
    line = str(caught.value)
    assert "\n" not in line
    assert line.count("; ") >= 1
    assert service._engine is None or not service._engine.loaded

    plan = service.plan(REQUEST)
    assert plan.warnings[0] == f"no video can be generated by this config: {line}"
    report = service.check()
    assert (report["healthy"], report["failed"]) == (False, {"weights": line})
    (fitness,) = [one for one in checks(service) if one.__name__ == "multitalk_weights"]
    with pytest.raises(UnfitError) as unusable_folder:
        fitness()
    assert caught.value.hint in str(unusable_folder.value)
    with pytest.raises(EngineError) as doctor:
        list(check_weights(CheckContext(given)))
    assert str(doctor.value) == line

    words = ["--image", PICTURE, "--audio", VOICE, "--prompt", "x", *given]
    assert main(["generate", *words]) == 2
    shown = capsys.readouterr().err
    assert caught.value.hint in shown
    assert main(["plan", "--json", *words]) == 0
    assert json.loads(capsys.readouterr().out)["warnings"][0].endswith(line)
    assert main(["plan", *words]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith("warning   no video can be generated by this config: ")


def test_a_plan_without_weights_asks_for_them_alone() -> None:
    plan = EngineService(["recipe=card-24gb", "device=cpu"]).plan(REQUEST)
    assert plan.weights is None
    assert plan.warnings[0].startswith("no video can be generated yet: no weights for the model 'multitalk'")
    assert not any("this config" in warning for warning in plan.warnings)


def test_nothing_but_headers_is_read_and_torch_is_not_imported(quanto: Path, network: Mapping[str, Tensor]) -> None:
    extra = lora(quanto, network)
    words = overrides(quanto, extra, "quant=int8-quanto")
    code = textwrap.dedent(
        f"""
        import sys
        from pathlib import Path
        from engine.assembly.compose import compose
        from engine.assembly.compatibility import check_suited
        from engine.plugin.manager import installed
        check_suited(compose({words!r}), Path({str(quanto)!r}), installed())
        assert "torch" not in sys.modules
        """
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_large_folder_is_looked_at_in_well_under_a_second(tmp_path: Path) -> None:
    # The published sizes: 40 blocks of 5120, a LoRA over all their layers.
    folder = tmp_path / "models" / "tiny"
    folder.mkdir(parents=True)
    for path in TINY.iterdir():
        if path.name not in ("transformer", "loras"):
            (folder / path.name).symlink_to(path)
    layers = (
        "self_attn.q",
        "self_attn.k",
        "self_attn.v",
        "self_attn.o",
        "cross_attn.q",
        "cross_attn.o",
        "ffn.0",
        "ffn.2",
    )
    square = ("BF16", (5120, 5120))
    audio = {f"blocks.{n}.audio_cross_attn.proj.weight": square for n in range(40)}
    wan = {f"blocks.{n}.{layer}.weight": square for n in range(40) for layer in layers}
    write_sparse(folder / "base" / "wan.safetensors", wan)
    write_sparse(folder / "multitalk.safetensors", audio)
    halves = {"down": (32, 5120), "up": (5120, 32)}
    write_sparse(
        folder / "own.safetensors",
        {
            f"diffusion_model.{name.removesuffix('.weight')}.lora_{half}.weight": ("BF16", shape)
            for name in wan
            for half, shape in halves.items()
        },
    )
    config = compose(overrides(folder, "lora.extra=[{file: own.safetensors}]"))
    began = time.process_time()
    check_suited(config, folder, installed())
    # 0.014 s of processor time on two cores of a virtual machine; another may be slow.
    assert time.process_time() - began < 0.6
