"""Weights are looked for once a request, whichever way the request comes in."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from example_request import EXAMPLES, REQUEST
from worker_fakes import ask

import engine
from engine import EngineService, pipeline
from engine.assembly.compose import compose
from engine.assembly.location import WeightsFinder
from engine.client import talk
from engine.data import Weights
from engine.plugin.manager import installed
from engine.serving.worker.handler import Handler, Terms
from engine.serving.worker.warm_engine import WarmEngine
from plugins.sources.packaged import Packaged


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Weights]:
    """A list that fills with what the source of the packaged weights is asked for."""
    calls: list[Weights] = []
    locate = Packaged.locate

    def counted(source: Packaged, weights: Weights) -> Path | None:
        calls.append(weights)
        return locate(source, weights)

    monkeypatch.setattr(Packaged, "locate", counted)
    return calls


@pytest.fixture
def cold(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a new process: the service reads weights ahead while it imports the pipeline."""
    monkeypatch.setattr(engine, "pipeline", pipeline)
    monkeypatch.delitem(sys.modules, "engine.pipeline")


@pytest.mark.usefixtures("cold")
def test_a_generation_looks_for_its_weights_once_and_a_later_one_never(asked: list[Weights], tmp_path: Path) -> None:
    service = EngineService([f"sink.folder={tmp_path}"])
    try:
        service.generate(REQUEST)
        assert len(asked) == 1
        service.generate(replace(REQUEST, overrides=("sampler=turbo", "sampler.steps=1")))
        assert len(asked) == 1
    finally:
        service.close()


@pytest.mark.usefixtures("cold")
def test_loading_looks_for_the_weights_once(asked: list[Weights]) -> None:
    service = EngineService()
    try:
        service.load()
        assert len(asked) == 1
    finally:
        service.close()


def test_a_plan_and_a_preview_look_for_the_weights_once(asked: list[Weights], tmp_path: Path) -> None:
    service = EngineService()
    service.plan(REQUEST)
    assert len(asked) == 1
    service.preview(REQUEST, tmp_path / "who.png")
    assert len(asked) == 2


@pytest.mark.usefixtures("cold")
@pytest.mark.parametrize("action", ["generate", "plan"])
def test_a_job_of_a_worker_looks_for_the_weights_once(asked: list[Weights], action: str) -> None:
    handler = Handler(WarmEngine(EngineService(["sink=base64", "access.schemes=[data]"])), Terms())
    media = talk(str(EXAMPLES / "one.png"), str(EXAMPLES / "one.flac"), prompt="a person talks")
    try:
        answer = ask(handler, {**media, "action": action, "num_frames": 5, "sampling_steps": 2})
    finally:
        handler.warm_engine.close()
    assert "error" not in answer, answer
    assert len(asked) == 1


def test_configs_that_need_the_same_weights_share_the_answer(asked: list[Weights]) -> None:
    weights = WeightsFinder(installed())
    folders = {
        weights.folder(compose(["model=tiny", "source=packaged", *more]))
        for more in ([], ["memory=lowest"], ["resolution=large"], ["sampler=turbo"])
    }
    assert (len(folders), len(asked)) == (1, 1)
    # What a source answers may depend on it.
    assert weights.find(compose(["model=tiny", "source=packaged", "quant=gguf"])).folder is None
    assert [one.quant for one in asked] == ["none", "gguf"]


def test_weights_in_memory_are_looked_for_nowhere(asked: list[Weights], tmp_path: Path) -> None:
    weights = WeightsFinder(installed(), loaded=tmp_path)
    assert weights.folder(compose(["model=tiny"])) == weights.fetch(compose(["model=tiny"])) == tmp_path
    assert not asked
