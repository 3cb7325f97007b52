"""The bench of quantised weights: each scheme runs on the embedded model, near the plain weights, and is told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import engine
from engine import EngineService
from engine.assembly.location import locate_weights
from engine.data import Request, Speaker
from engine.errors import RequestError
from engine.loading.layout import QUANTISED
from engine.plugin.manager import installed
from scripts.evaluate_tiny import quant, studio
from scripts.evaluate_tiny.__main__ import main as command
from scripts.evaluate_tiny.quant import (
    SCHEMES,
    prepare_scheme,
    record_forwards,
    relative_error,
    table,
    weight_bytes,
    write_table,
)

if TYPE_CHECKING:
    from torch import Tensor

pytest.importorskip("torchao")
pytest.importorskip("gguf")

#: Most of a forward's relative error and of the plain weights' bytes. float8 has three bits after its leading one;
#: docs/measured/quant.json has what was measured.
BOUNDS = {
    "int8": (0.02, 0.5),
    "int8-quanto": (0.02, 0.5),
    "fp8-quanto": (0.06, 0.5),
    "int8-dynamic": (0.02, 0.5),
    "fp8-dynamic": (0.07, 0.5),
    "int8-quanto-dynamic": (0.02, 0.5),
    "fp8-quanto-dynamic": (0.07, 0.5),
    "gguf-q8_0": (0.02, 0.6),
    "gguf-q4_0": (0.2, 0.5),
}
#: Some of the schemes are much like others.
SLOW = ("fp8-quanto", "gguf-q8_0", "int8-quanto-dynamic", "fp8-dynamic")
CASES = [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in SCHEMES]
GIVEN = ("model=tiny", "model.turbo.loras=[]", "sampler.steps=2", "sink=base64")
EXAMPLES = Path(engine.__file__).parent / "examples"


def forward(service: EngineService) -> tuple[Tensor, int]:
    """Return the first forward of a video, and the network's bytes: random inputs ask for what no video does."""
    model: Any = service.engine.load().model
    network = model.transformer
    outputs: list[Tensor] = []
    record_forwards(network, outputs)
    speaker = Speaker(str(EXAMPLES / "one.flac"))
    service.generate(Request(prompt="A person talks.", image=str(EXAMPLES / "one.png"), speakers=(speaker,), frames=17))
    size = weight_bytes(network)
    service.close()
    return outputs[0], size


@pytest.fixture(scope="module")
def plain() -> tuple[Tensor, int]:
    return forward(EngineService(GIVEN))


def test_every_scheme_of_the_engine_is_measured() -> None:
    presets = {"int8-quanto-dynamic", "fp8-quanto-dynamic"}
    # A file of another family.
    others = {"int8-longcat"}
    measured = {scheme.quant for scheme in SCHEMES.values()}
    assert measured == {*installed().quants.names(), *QUANTISED, *presets} - others


@pytest.mark.slow
@pytest.mark.parametrize("scheme", CASES)
def test_scheme_keeps_the_embedded_model_near_its_plain_weights(
    scheme: str, plain: tuple[Tensor, int], tmp_path: Path
) -> None:
    weights = locate_weights(EngineService(GIVEN).config, installed())

    made, size = forward(EngineService((*GIVEN, *prepare_scheme(scheme, weights, tmp_path))))

    most, share = BOUNDS[scheme]
    assert 0 < relative_error(plain[0], made) < most
    assert size < share * plain[1]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="its voices need eSpeak NG")
def test_command_tells_errors_lips_and_what_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(studio, "FRAMES", 25)

    words = "--clips 1 --schemes int8,fp8 --override sampler.steps=2"
    assert command(["quant", *words.split()]) == 0
    report = json.loads(capsys.readouterr().out)

    assert report["settings"]["overrides"][-1] == "sampler.steps=2"
    assert report["refused"].keys() == {"fp8"}
    assert report["refused"]["fp8"].startswith("quant: no quant named 'fp8'; installed: ")
    result, one = report["schemes"]["int8"], report["plain"]["one"]["mean"]
    assert 0 < result["error"]["forward"] < result["error"]["latents"] < 0.05
    assert result["error"]["psnr"] > 40
    assert result["less"]["one"] == pytest.approx(one - result["one"]["mean"], abs=1e-4)
    assert abs(result["less"]["two"]) < 0.02
    assert result["share"] == pytest.approx(result["bytes"] / report["plain"]["bytes"], abs=1e-3)
    assert table(report).count("\n") == 3


@pytest.mark.parametrize("change", [{"clips": 0}, {"schemes": " , "}])
def test_nothing_to_measure_is_an_error(change: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="clips"):
        quant.run(**change)


def test_the_page_holds_the_table_of_the_measured_report(tmp_path: Path) -> None:
    root = Path(quant.__file__).parents[2]
    for path in (quant.PAGE, *quant.MEASURED.values()):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / path, tmp_path / path)

    write_table(tmp_path)

    assert (tmp_path / quant.PAGE).read_text() == (root / quant.PAGE).read_text(), (
        "python -m scripts.evaluate_tiny table"
    )
