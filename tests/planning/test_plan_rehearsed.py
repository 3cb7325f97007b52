"""Plans say what rehearsals saw: the arithmetic of today against the report of `nox -s rehearse` in docs/measured."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from engine import EngineService
from engine.assembly.compose import compose
from engine.planning.gpus import find_card
from engine.rehearsal import walk
from engine.rehearsal.rehearse import default_card, sizes_of
from engine.rehearsal.report import HOST_CRUMBS, TOLERANCE, planned_stages
from engine.rehearsal.walk import Scene, Walk

REPORT = Path(__file__).parents[2] / "docs" / "measured" / "rehearsal.json"
#: Bytes of the attached LoRA: of the turbo bundle, and of LongCat's distillation.
LORA = 359_188_544
LORAS = {"longcat": 1_664_090_112}


@cache
def reports() -> list[dict[str, Any]]:
    return [report for report in json.loads(REPORT.read_text("utf-8")) if not report["reckoned"]]


def named(report: dict[str, Any]) -> str:
    return f"{' '.join(report['overrides'])}, {report['settings']['speakers']} speakers"


def test_every_recipe_for_cards_was_rehearsed_without_a_fault() -> None:
    seen = {(*report["overrides"], report["settings"]["speakers"]) for report in reports()}
    folder = REPORT.parents[2] / "conf" / "recipe"

    assert seen == {
        (f"recipe={path.stem}", f"sampler={sampler}", speakers)
        for path in folder.glob("card-*.yaml")
        for sampler in ("standard", "turbo")
        for speakers in (1, 2)
    } | {(f"recipe={path.stem}", "sampler=standard", 1) for path in folder.glob("flashtalk-*.yaml")} | {
        (f"recipe={path.stem}", "sampler=standard", speakers)
        for path in folder.glob("longcat-*.yaml")
        for speakers in (1, 2)
    }
    for report in json.loads(REPORT.read_text("utf-8")):
        assert report["faults"] == [], named(report)
        assert report["fits"], named(report)


#: Of each recipe and sampler the one with most speakers.
LARGEST = [
    report
    for report in reports()
    if report["settings"]["speakers"] == (1 if report["settings"]["model"] == "flashtalk" else 2)
]


@pytest.mark.parametrize("report", LARGEST, ids=named)
def test_each_stage_of_a_plan_is_what_was_rehearsed(report: dict[str, Any], tmp_path: Path) -> None:
    overrides, scene = report["overrides"], Scene(report["settings"]["speakers"], report["settings"]["windows"])
    config = compose(overrides)
    card = find_card(report["card"])
    assert card == default_card(overrides)
    seen = Walk(
        config,
        default_card(overrides),
        scene,
        memory=report["settings"]["profile"],
        loras=LORAS.get(config.model.name, LORA),
        heard=report["settings"]["heard"],
    )
    seen.plan = EngineService([*overrides, "source=volume", f"source.path={tmp_path}"]).plan(
        walk.request_for(config, scene, tmp_path)
    )
    stages, host = planned_stages(seen, sizes_of(seen))
    peaks: dict[str, int] = {}
    for row in report["stages"]:
        peaks[row["stage"]] = max(row["peak"], peaks.get(row["stage"], 0))

    assert stages.keys() == {"text", "vae encode", "image", "denoise", "vae decode", "colors"}
    # LongCat's picture is a latent frame: there is no encoder for it.
    assert stages.keys() - peaks.keys() == ({"image"} if config.family.name == "longcat" else set())
    for name, stage in ((name, stage) for name, stage in stages.items() if name in peaks):
        assert stage.tensors == pytest.approx(peaks[name], rel=TOLERANCE), name
    assert host == pytest.approx(report["host_peak"], rel=TOLERANCE, abs=HOST_CRUMBS)
