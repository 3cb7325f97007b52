"""LoRA files as people have them: what they say about alpha, what of them is used, and what they are if not LoRAs."""

from __future__ import annotations

import base64
import json
import math
import pickle
import struct
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from worker_fakes import ask

from engine import EngineService, Request, Speaker
from engine.cli.main import main
from engine.errors import SourceError
from engine.loading.lora_alpha import Strengths, strengths
from engine.loading.lora_file import read_lora_header
from engine.loading.lora_names import sort_entries
from engine.serving.worker.handler import Handler, Terms
from engine.serving.worker.warm_engine import WarmEngine

ROOT = Path(__file__).parents[2]
TINY = ROOT / "engine" / "weights" / "tiny"
EXAMPLES = ROOT / "engine" / "examples"
PICTURE, VOICE = str(EXAMPLES / "one.png"), str(EXAMPLES / "one.flac")
QUERY, VALUE = "transformer.blocks.0.attn1.to_q", "transformer.blocks.1.attn1.to_v"


def write(path: Path, metadata: Mapping[str, str] | None = None, **alphas: float) -> Path:
    """Write a LoRA of two layers and rank 8, with alphas of those named."""
    tensors: dict[str, Tensor] = {}
    for short, module in (("query", QUERY), ("value", VALUE)):
        tensors |= {f"{module}.lora_A.weight": torch.ones(8, 4), f"{module}.lora_B.weight": torch.ones(4, 8)}
        if short in alphas:
            tensors[f"{module}.alpha"] = torch.tensor(alphas[short], dtype=torch.bfloat16)
    save_file(tensors, path, metadata=dict(metadata or {"format": "pt"}))
    return path


def settled(path: Path) -> Strengths:
    header = read_lora_header(path)
    parts, _ = sort_entries(header.shapes)
    return strengths(parts, header.shapes, header.alphas, header.stated)


def scales(path: Path) -> list[float]:
    """Return the scales of query and value."""
    result = settled(path).scales
    return [result.get(f"blocks.{index}.attn1.to_{one}.weight", 1.0) for index, one in enumerate("qv")]


def adapter(**told: Any) -> dict[str, str]:
    return {"lora_adapter_metadata": json.dumps({f"transformer.{key}": value for key, value in told.items()})}


# --- alpha ------------------------------------------------------------------------------------------------------------

#: What a header says, and the scales of both layers, at rank 8.
HEADERS: dict[str, tuple[dict[str, str], list[float]]] = {
    "nothing": ({}, [1.0, 1.0]),
    "of diffusers": (adapter(r=8, lora_alpha=16), [2.0, 2.0]),
    "of PEFT without a prefix": ({"lora_adapter_metadata": json.dumps({"r": 8, "lora_alpha": 4})}, [0.5, 0.5]),
    "with alphas of modules": (
        adapter(r=4, lora_alpha=16, rank_pattern={"to_q": 8, "to_v": 8}, alpha_pattern={"blocks.0.attn1.to_q": 64}),
        [8.0, 2.0],
    ),
    "with an expression of modules": (
        adapter(r=8, lora_alpha=8, alpha_pattern={r"blocks\.\d+\.attn1\.to_v": 4}),
        [1, 0.5],
    ),
    "by the root of the rank": (adapter(r=8, lora_alpha=8, use_rslora=True), [8**0.5, 8**0.5]),
    "of lightx2v": ({"alpha": "8", "rank": "8", "format": "pt"}, [1.0, 1.0]),
    "of SimpleTuner": ({"transformer.lora_alpha": "64", "transformer.r": "8"}, [8.0, 8.0]),
    "flat, by the root": ({"lora_alpha": "8", "use_rslora": "True"}, [8**0.5, 8**0.5]),
    "by network_alpha": ({"network_alpha": "2.0"}, [0.25, 0.25]),
    "of another part": ({"text_encoder.lora_alpha": "64", "transformer_2.lora_alpha": "64"}, [1.0, 1.0]),
    "of another part of diffusers": (
        {"lora_adapter_metadata": json.dumps({"text_encoder.r": 4, "text_encoder.lora_alpha": 64})},
        [1.0, 1.0],
    ),
    "twice the same": ({**adapter(r=8, lora_alpha=16), "lora_alpha": "16"}, [2.0, 2.0]),
}


@pytest.mark.parametrize("name", HEADERS)
def test_alpha_of_the_header_scales_the_pairs(name: str, tmp_path: Path) -> None:
    metadata, expected = HEADERS[name]
    path = write(tmp_path / "x.safetensors", metadata)

    assert scales(path) == pytest.approx(expected)


def test_alpha_of_adapter_config_scales_the_pairs(tmp_path: Path) -> None:
    path = write(tmp_path / "adapter_model.safetensors")
    config = tmp_path / "adapter_config.json"
    config.write_text(json.dumps({"peft_type": "LORA", "r": 8, "lora_alpha": 32, "target_modules": ["to_q"]}))

    assert scales(path) == [4.0, 4.0]
    assert settled(path).text == "alpha 32 at rank 8 (scale 4) from adapter_config.json"


def test_adapter_config_is_about_the_file_of_its_name_or_the_only_one(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 8, "lora_alpha": 32}))
    alone = write(tmp_path / "mine.safetensors")
    assert scales(alone) == [4.0, 4.0]

    # One of several, and none has PEFT's name: taken by its rank, and told.
    other = tmp_path / "other.safetensors"
    save_file({f"{QUERY}.lora_A.weight": torch.ones(2, 4), f"{QUERY}.lora_B.weight": torch.ones(4, 2)}, other)
    assert scales(alone) == [4.0, 4.0]
    (warning,) = read_lora_header(alone).warnings
    assert "adapter_config.json beside mine.safetensors is used for it, although other.safetensors is there" in warning
    assert read_lora_header(other).stated == ()

    own = write(tmp_path / "adapter_model.safetensors")
    assert scales(own) == [4.0, 4.0]
    assert scales(alone) == [1.0, 1.0]


def test_alpha_of_the_tensors_is_used_where_the_header_agrees(tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", adapter(r=8, lora_alpha=16), query=16)

    assert scales(path) == [2.0, 2.0]
    assert settled(path).text == (
        "alpha 16 at rank 8 (scale 2) from its own tensors, "
        "alpha 16 at rank 8 (scale 2) from the header's lora_adapter_metadata"
    )


#: What header and tensors say, and both sources as the error names them.
CONFLICTS: dict[str, tuple[dict[str, str], dict[str, float], str, str]] = {
    "tensors and header": (
        adapter(r=8, lora_alpha=16),
        {"query": 8},
        f"its tensor {QUERY}.alpha says alpha 8",
        "the header's lora_adapter_metadata says alpha 16",
    ),
    "two keys of the header": (
        {"lora_alpha": "8", "alpha": "16"},
        {},
        "the header's lora_alpha says alpha 8",
        "the header's alpha says alpha 16",
    ),
    "header and its flat keys": (
        {**adapter(r=8, lora_alpha=8), "lora_alpha": "16"},
        {},
        "lora_adapter_metadata says alpha 8",
        "the header's lora_alpha says alpha 16",
    ),
    "by the root and not": (
        adapter(r=8, lora_alpha=8, use_rslora=True),
        {"value": 8},
        "says alpha 8 (scale 1)",
        "says alpha 8 (scale 2.82843)",
    ),
    "tensors and kohya's header": (
        {"ss_network_alpha": "1.0"},
        {"query": 8, "value": 8},
        f"its tensor {QUERY}.alpha says alpha 8",
        "the header's ss_network_alpha says alpha 1",
    ),
    "another rank": (adapter(r=16, lora_alpha=16), {}, "lora_adapter_metadata says rank 16", "have rank 8"),
}


@pytest.mark.parametrize("name", CONFLICTS)
def test_sources_of_alpha_that_differ_are_an_error_that_names_both(name: str, tmp_path: Path) -> None:
    metadata, alphas, one, other = CONFLICTS[name]
    path = write(tmp_path / "x.safetensors", metadata, **alphas)

    with pytest.raises(SourceError) as caught:
        settled(path)
    assert one in caught.value.what
    assert other in caught.value.what
    assert "\n" not in str(caught.value)


def test_header_and_adapter_config_that_differ_are_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "adapter_model.safetensors", {"lora_alpha": "8"})
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 8, "lora_alpha": 16}))

    with pytest.raises(SourceError, match=r"header's lora_alpha says alpha 8 .* adapter_config\.json says alpha 16"):
        settled(path)


@pytest.mark.parametrize(
    "metadata",
    [
        {"lora_alpha": "many"},
        {"lora_alpha": "nan"},
        {"lora_alpha": "-1"},
        {"alpha": "1e999"},
        adapter(r=8, lora_alpha=0),
        adapter(r=8, lora_alpha=10**400),
        {"lora_adapter_metadata": "{"},
        {"lora_adapter_metadata": "[" * 100_000},
        {"lora_adapter_metadata": "[1]"},
        adapter(r=8, lora_alpha=8, use_dora=True),
        adapter(r=8, lora_alpha=8, alpha_pattern={"(a+)+$": 8}),
        adapter(r=8, lora_alpha=8, alpha_pattern={"(": 8}),
    ],
)
def test_a_header_that_cannot_be_meant_is_an_error_of_one_line(metadata: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(SourceError) as caught:
        settled(write(tmp_path / "x.safetensors", metadata))
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00", '{"lora_alpha": "x"}', '{"peft_type": "OFT", "r": 8}'])
def test_an_adapter_config_that_cannot_be_meant_is_an_error_of_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(SourceError) as caught:
        settled(write(tmp_path / "x.safetensors"))
    assert "adapter_config.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_alpha_that_is_no_finite_number_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="alpha is nan"):
        settled(write(tmp_path / "x.safetensors", query=math.nan))


def test_kohyas_header_scales_kohyas_names_and_is_told_for_converted_ones(tmp_path: Path) -> None:
    metadata = {"ss_network_dim": "8", "ss_network_alpha": "4.0"}
    own = tmp_path / "own.safetensors"
    names = {"down": (8, 4), "up": (4, 8)}
    save_file(
        {f"lora_unet_blocks_0_self_attn_q.lora_{one}.weight": torch.ones(*shape) for one, shape in names.items()},
        own,
        metadata=metadata,
    )
    assert scales(own) == [0.5, 1.0]
    assert settled(own).warnings == ()

    # musubi-tuner's convert_lora.py takes the scale into the weights, and keeps the header.
    converted = write(tmp_path / "converted.safetensors", metadata)
    assert scales(converted) == [1.0, 1.0]
    (warning,) = settled(converted).warnings
    assert warning.startswith("the header's ss_network_alpha (4) is not used")

    for word in ("Dynamic", "None", "0"):
        assert settled(write(converted, {"ss_network_alpha": word})).warnings == ()


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32]
)
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_alpha_is_read_however_it_is_stored(dtype: torch.dtype, shape: tuple[int, ...], tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"one.alpha": torch.full(shape, 12, dtype=dtype), "two": torch.ones(3)}, path)

    assert read_lora_header(path).alphas == {"one.alpha": 12.0}


# --- what is no LoRA --------------------------------------------------------------------------------------------------


def archive(path: Path, name: str) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(name, "x")


STRANGERS: dict[str, tuple[Any, str]] = {
    "of torch": (lambda path: torch.save({"a.lora_A.weight": torch.ones(2, 2)}, path), "a PyTorch archive"),
    "of an older torch": (
        lambda path: torch.save({"a": torch.ones(2)}, path, _use_new_zipfile_serialization=False),
        "a PyTorch pickle",
    ),
    "packed": (lambda path: archive(path, "lora.safetensors"), "a zip archive"),
    "of llama.cpp": (lambda path: path.write_bytes(b"GGUF" + bytes(60)), "a GGUF file"),
    "a page": (lambda path: path.write_bytes(b"\n<!DOCTYPE html><html>sign in</html>"), "a web page"),
    "an answer": (lambda path: path.write_bytes(b'{"error": "gated"}' + bytes(20)), "a server's error"),
    "a pointer": (
        lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"),
        "a git-lfs pointer",
    ),
    "a text": (lambda path: path.write_bytes(b'[{"text": "not found"}]'), "a JSON text"),
    "of pickle's last protocol": (lambda path: path.write_bytes(pickle.dumps({"a": 1}, 5)), "a PyTorch pickle"),
    "nothing": (lambda path: path.write_bytes(b""), "empty"),
}


@pytest.mark.parametrize("suffix", ["safetensors", "pt", "ckpt"])
@pytest.mark.parametrize("name", STRANGERS)
def test_a_file_that_is_no_lora_is_named_as_what_it_is(name: str, suffix: str, tmp_path: Path) -> None:
    make, kind = STRANGERS[name]
    path = tmp_path / f"x.{suffix}"
    make(path)

    with pytest.raises(SourceError) as caught:
        read_lora_header(path)
    assert f"x.{suffix} is {kind}" in caught.value.what
    assert "damaged" not in str(caught.value)
    assert caught.value.hint


def test_the_line_that_an_error_gives_for_a_pytorch_file_makes_a_lora(tmp_path: Path) -> None:
    tensors = {f"{QUERY}.lora_A.weight": torch.ones(8, 4), f"{QUERY}.lora_B.weight": torch.ones(4, 8)}
    torch.save(tensors, tmp_path / "x.pt")
    with pytest.raises(SourceError) as caught:
        read_lora_header(tmp_path / "x.pt")
    line = caught.value.hint.partition(": ")[2].replace("python ", f"{sys.executable} ", 1)

    subprocess.run(line, shell=True, check=True, cwd=tmp_path)

    assert set(read_lora_header(tmp_path / "x.safetensors").shapes) == set(tensors)


def test_a_header_that_is_damaged_is_an_error_of_one_line(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    for content in (b"\1", struct.pack("<Q", 2**40) + b"{}", struct.pack("<Q", 4) + b"nope", bytes(8), bytes(64)):
        path.write_bytes(content)
        with pytest.raises(SourceError, match="damaged") as caught:
            read_lora_header(path)
        assert "\n" not in str(caught.value)


def test_a_folder_is_told_with_the_file_in_it(tmp_path: Path) -> None:
    write(tmp_path / "adapter_model.safetensors")
    with pytest.raises(SourceError, match="no LoRA file") as caught:
        read_lora_header(tmp_path)
    assert f"{tmp_path.name}/adapter_model.safetensors" in caught.value.hint


# --- from the file to the answer --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def turbo() -> dict[str, Tensor]:
    return load_file(TINY / "loras" / "turbo.safetensors")


def words(path: Path | None, *more: str) -> list[str]:
    extra = [] if path is None else [f"lora.extra=[{{file: '{path}'}}]"]
    steps = ["sampler=turbo", "sampler.steps=1", "model.turbo.loras=[]"]
    return ["model=tiny", "device=cpu", *steps, *extra, *more]


def film(folder: Path, *words: str) -> tuple[npt.NDArray[np.float64], Any, Any]:
    """Make a video of five frames, the first of which is the picture; return its pixels, its delivery and its plan."""
    service = EngineService([*words, f"sink.folder={folder}"])
    request = Request("a person talks", PICTURE, (Speaker(VOICE),), frames=5)
    plan = service.plan(request)
    delivery = service.generate(request)
    service.close()
    with av.open(str(delivery.address)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return np.stack(frames).astype(np.float64), delivery, plan


@pytest.mark.parametrize("mode", ["runtime", "merged"])
def test_what_a_lora_changes_and_what_it_does_not_is_in_plan_and_answer(
    mode: str, turbo: dict[str, Tensor], tmp_path: Path
) -> None:
    half = {key: one / 2 if "lora_B" in key else one for key, one in turbo.items()}
    files = {
        "plain": (turbo, {}),
        "stated": (half, adapter(r=16, lora_alpha=32)),
        "tables": (
            turbo | {f"diffusion_model.blocks.{index}.diff_m": torch.full((1, 6, 160), 0.5) for index in range(5)},
            {},
        ),
        "foreign": (turbo | {f"transformer.blocks.{index}.attn1.to_q.diff_b": torch.ones(160) for index in (5, 6)}, {}),
    }
    made = {}
    for name, (tensors, metadata) in files.items():
        path = tmp_path / f"{name}.safetensors"
        save_file(tensors, path, metadata=metadata)
        made[name] = film(tmp_path, *words(path, f"lora.mode={mode}"))

    plain = made["plain"][0]
    # Rounding, and what the encoding makes of it; the halves alone are over 2 away.
    assert np.abs(made["stated"][0] - plain).mean() < 0.5
    assert np.abs(made["tables"][0] - plain).mean() > 10
    assert np.abs(made["foreign"][0] - plain).mean() == 0
    for name, (_, delivery, plan) in made.items():
        assert plan.warnings == delivery.warnings
        assert plan.loras == delivery.plan.loras
        told = [warning for warning in delivery.warnings if "match no tensor" in warning]
        assert bool(told) == (name == "foreign")
        (use,) = plan.loras
        assert use.file == f"{name}.safetensors"
    assert made["foreign"][1].warnings[-1] == (
        "2 of 132 entries of foreign.safetensors match no tensor: "
        "transformer.blocks.5.attn1.to_q.diff_b, transformer.blocks.6.attn1.to_q.diff_b"
    )
    assert made["stated"][2].loras[0].alpha == "alpha 32 at rank 16 (scale 2) from the header's lora_adapter_metadata"


def test_a_lora_that_is_loaded_and_not_on_is_not_told(tmp_path: Path, turbo: dict[str, Tensor]) -> None:
    path = tmp_path / "turbo.safetensors"
    save_file(turbo | {"mystery.diff": torch.ones(1)}, path)
    loras = f"model.turbo.loras=[{{file: '{path}'}}]"
    request = Request("a person talks", PICTURE, (Speaker(VOICE),), frames=5)

    plans = [
        EngineService(["model=tiny", "device=cpu", loras, *more]).plan(request) for more in ([], ["sampler=turbo"])
    ]

    assert [len(plan.loras) for plan in plans] == [0, 1]
    assert [any("mystery.diff" in warning for warning in plan.warnings) for plan in plans] == [False, True]


def test_command_line_and_worker_answer_with_what_matched_nothing(
    turbo: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "foreign.safetensors"
    save_file(turbo | {"lora_te_layer.lora_up.weight": torch.ones(2, 2)}, path)
    warning = "1 of 131 entries of foreign.safetensors match no tensor: lora_te_layer.lora_up.weight"

    flags = ["--image", PICTURE, "--audio", VOICE, "--prompt", "talks", "--frames", "1", "--json"]
    assert main(["generate", *flags, "--output", str(tmp_path / "x.mp4"), *words(path)]) == 0
    out, err = capsys.readouterr()
    assert warning in json.loads(out.splitlines()[-1])["warnings"]
    assert f"multitalk: warning: {warning}" in err

    service = EngineService([*words(path), "sink=base64", "access.schemes=[data]"])
    data = {
        key: f"data:application/octet-stream;base64,{base64.b64encode(Path(file).read_bytes()).decode()}"
        for key, file in (("reference_image", PICTURE), ("audio_1", VOICE))
    }
    answer = ask(Handler(WarmEngine(service), Terms()), {"prompt": "talks", "num_frames": 1, **data})
    assert warning in answer["warnings"]
    assert answer["loras"] == [
        {"file": path.name, "scale": 1.0, "entries": 131, "unmatched": 1, "alpha": "no alpha (scale 1)"}
    ]
