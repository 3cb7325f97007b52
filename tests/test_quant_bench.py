"""The bench of quantised weights: each scheme runs on the embedded model, near the plain weights, and is told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engine import EngineService
from engine.bench import quant, talk_studio
from engine.bench.quant import SCHEMES, prepare_scheme, relative_error, table, weight_bytes, write_table
from engine.bench.transformer import build_inputs
from engine.commands.bench import bench as command
from engine.errors import RequestError
from engine.multitalk.load import QUANTS
from engine.registry import installed
from engine.settings import locate_weights

pytest.importorskip("torchao")
pytest.importorskip("gguf")

#: Most of a forward's relative error and of the plain weights' bytes. float8 has three bits after its leading one;
#: measured on random inputs were 0.8 %, 1 %, 4 %, 0.8 % and 13 %; of int8-quanto with the weights since, 2.9 %.
BOUNDS = {
    "int8": (0.02, 0.5),
    "int8-quanto": (0.05, 0.5),
    "fp8-quanto": (0.06, 0.5),
    "gguf-q8_0": (0.02, 0.6),
    "gguf-q4_0": (0.2, 0.5),
}


@torch.no_grad()
def forward(service: EngineService) -> tuple[Tensor, int]:
    model: Any = service.engine.load().model.transformer
    latents, time, conditions = build_inputs(model, (3, 6, 10), 2, torch.Generator().manual_seed(0))
    return model(latents, time, conditions=conditions).sample, weight_bytes(model)


@pytest.fixture(scope="module")
def plain() -> tuple[Tensor, int]:
    return forward(EngineService(["model=tiny", "model.turbo.loras=[]"]))


def test_every_scheme_of_the_engine_is_measured() -> None:
    assert {scheme.quant for scheme in SCHEMES.values()} == set(QUANTS) - {"none"}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_scheme_keeps_the_embedded_model_near_its_plain_weights(
    scheme: str, plain: tuple[Tensor, int], tmp_path: Path
) -> None:
    given = ("model=tiny", "model.turbo.loras=[]")
    weights = locate_weights(EngineService(given).config, installed())

    made, size = forward(EngineService((*given, *prepare_scheme(scheme, weights, tmp_path))))

    most, share = BOUNDS[scheme]
    assert 0 < relative_error(plain[0], made) < most
    assert size < share * plain[1]


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="its voices need eSpeak NG")
def test_command_tells_errors_lips_and_what_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(talk_studio, "FRAMES", 25)

    words = "--clips 1 --schemes int8,fp8 --override sampler.steps=2"
    assert command(["quant", *words.split()]) == 0
    report = json.loads(capsys.readouterr().out)

    assert report["settings"]["overrides"][-1] == "sampler.steps=2"
    assert report["refused"].keys() == {"fp8"}
    assert report["refused"]["fp8"].startswith("quant: no quant named 'fp8'; installed: ")
    found, one = report["schemes"]["int8"], report["plain"]["one"]["mean"]
    assert 0 < found["error"]["forward"] < found["error"]["latents"] < 0.05
    assert found["error"]["psnr"] > 40
    assert found["less"]["one"] == pytest.approx(one - found["one"]["mean"], abs=1e-4)
    assert abs(found["less"]["two"]) < 0.02
    assert found["share"] == pytest.approx(found["bytes"] / report["plain"]["bytes"], abs=1e-3)
    assert table(report).count("\n") == 3


@pytest.mark.parametrize("change", [{"clips": 0}, {"schemes": " , "}])
def test_nothing_to_measure_is_an_error(change: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="bench quant"):
        quant.run(**change)


def test_the_page_holds_the_table_of_the_measured_report(tmp_path: Path) -> None:
    root = Path(quant.__file__).parents[2]
    for path in (quant.PAGE, quant.MEASURED):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / path, tmp_path / path)

    write_table(tmp_path)

    assert (tmp_path / quant.PAGE).read_text() == (root / quant.PAGE).read_text(), "python -m engine.bench.quant"
