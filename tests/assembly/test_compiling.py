"""compile=blocks from the config to a video: what goes with it, what is refused, and where kernels are kept."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from graphs import fresh_counters

from engine import EngineService, Request, Speaker
from engine.assembly.compiling import check_compile, make_compiling
from engine.assembly.compose import compose
from engine.assembly.estimates import estimate_plan
from engine.errors import ConfigError, UnknownComponent
from engine.loading.placement import stream_blocks
from engine.plugin.manager import installed
from engine.stages.write import read_provenance

EXAMPLES = files("engine") / "examples"
TWO = Request(
    "two people talk",
    str(EXAMPLES / "two.png"),
    (Speaker(str(EXAMPLES / "left.flac")), Speaker(str(EXAMPLES / "right.flac"))),
    frames=13,
    seed=1,
)
#: Two windows, of which the second has motion frames.
BOOT = ("model=tiny", "source=packaged", "model.window=9", "continuation.frames=5", "device=cpu", "sampler.steps=3")
TRACED = ("compile=blocks", "compile.backend=eager")


@pytest.fixture
def graphs() -> Iterator[Any]:
    yield fresh_counters()
    fresh_counters()


def video(words: tuple[str, ...], folder: Path, request: Request = TWO) -> Path:
    service = EngineService([*BOOT, *words, f"sink.folder={folder}"])
    try:
        return Path(str(service.generate(request).address))
    finally:
        service.close()


def frames(path: Path) -> Any:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="gray") for frame in container.decode(video=0)]).astype(int)


@pytest.mark.parametrize(
    "words",
    [
        ("memory=group-offload", "cache=taylorseer", "cache.warmup=2"),
        pytest.param(("memory=lowest", "cache=firstblock"), marks=pytest.mark.slow),
        pytest.param(("memory=model-offload", "sampler=turbo", "sampler.steps=3"), marks=pytest.mark.slow),
        pytest.param(("memory=text-offload", "sampler=turbo", "lora.mode=merged"), marks=pytest.mark.slow),
        pytest.param(("quant=int8", "memory=group-offload", "sampler=turbo"), marks=pytest.mark.slow),
        pytest.param(
            ("cache=teacache", "cache.threshold=5", "cache.warmup=1", "cache.coefficients=[1.0,0.0]"),
            marks=pytest.mark.slow,
        ),
    ],
    ids=" ".join,
)
def test_the_video_is_that_without_compiling_and_needs_two_graphs(
    words: tuple[str, ...], tmp_path: Path, graphs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a CPU nothing is streamed.
    monkeypatch.setattr("engine.loading.placement.transformer_mover", stream_blocks)
    expected = video(words, tmp_path / "plain")
    assert not graphs["stats"]

    made = video((*words, *TRACED), tmp_path / "compiled")

    # Speakers, and none: the branch without voices, or with one voice. Windows and branches share them.
    assert graphs["stats"]["unique_graphs"] <= 2
    assert not graphs["graph_break"]
    # The last bits of a rotation differ; a token may change its speaker by that, and the encoder spreads it.
    assert np.abs(frames(made) - frames(expected)).mean() < 2
    assert read_provenance(made)["compile"] == "eager"
    assert "compile" not in read_provenance(expected)


def test_compiling_is_refused_on_a_cpu_in_plans_and_videos(tmp_path: Path) -> None:
    service = EngineService([*BOOT, "compile=blocks", f"sink.folder={tmp_path}"])

    for attempt in (service.plan, service.generate):
        with pytest.raises(ConfigError, match="makes nothing faster on a CPU") as caught:
            attempt(TWO)
        assert caught.value.field == "compile"
        assert "compile=none" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("other", "why"), [("parallel=ulysses", "exchange between processes"), ("quant=gguf", "unpacking of GGUF")]
)
def test_what_cannot_be_compiled_is_refused_by_name(other: str, why: str) -> None:
    config = compose(["compile=blocks", other, "device=cuda"])

    with pytest.raises(ConfigError, match=why) as caught:
        check_compile(config)
    assert caught.value.field == "compile"


def test_another_way_to_compile_is_unknown() -> None:
    with pytest.raises(UnknownComponent, match="whole"):
        check_compile(compose(["compile.name=whole"]))


def test_a_card_without_a_compiler_is_told_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = compose(["compile=blocks", "device=cuda"])
    monkeypatch.setattr("engine.assembly.compiling.missing_for_triton", lambda: ("no compiler", "install gcc"))

    with pytest.raises(ConfigError, match="no compiler") as caught:
        make_compiling(config, tmp_path, "cuda")
    assert caught.value.hint == "install gcc, or choose compile=none"


def test_kernels_are_kept_on_the_volume_beside_the_models(tmp_path: Path) -> None:
    def cache(*words: str, folder: Path) -> Path | None:
        made = make_compiling(compose(["compile.backend=eager", *words]), folder, "cpu")
        assert made is not None
        return made.cache

    model = tmp_path / compose(["model=multitalk"]).model.folder
    assert cache("model=multitalk", "compile=blocks", "compile.backend=eager", folder=model) == tmp_path / ".compiled"
    # The package's folder, and one that another program manages.
    assert cache("model=tiny", "compile=blocks", "compile.backend=eager", folder=tmp_path / "tiny") is None
    assert cache("model=multitalk", "compile=blocks", "compile.backend=eager", folder=tmp_path / "3fa9") is None
    chosen = cache("compile=blocks", "compile.backend=eager", f"compile.cache={tmp_path / 'own'}", folder=model)
    assert chosen == tmp_path / "own"
    assert make_compiling(compose([]), model, "cpu") is None


def test_a_plan_predicts_less_traffic_and_says_what_it_leaves_out() -> None:
    words = ["model=multitalk", "device=cuda"]
    service = EngineService(words)
    plan = service.plan(TWO)

    compiled = estimate_plan(plan, compose([*words, "compile=blocks"]), installed())

    assert plan.estimates is not None
    assert compiled.estimates is not None
    pairs = zip(plan.estimates.cards, compiled.estimates.cards, strict=True)
    steps = [(before.step_seconds, after.step_seconds) for before, after in pairs]
    assert all(0.7 * before < after < before for before, after in steps if before)
    assert any("do not include the time to compile" in warning for warning in compiled.warnings)
