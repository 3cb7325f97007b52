"""Found people become the regions that a request leaves open; given regions stay."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import engine
from engine.data import Region, Request, Speaker
from engine.errors import RequestError
from engine.service import EngineService
from scripts.train_people.__main__ import scene_of

EXAMPLES = Path(engine.__file__).parent / "examples"
VOICES = (Speaker(str(EXAMPLES / "left.flac")), Speaker(str(EXAMPLES / "right.flac")))
TWO = Request(image=str(EXAMPLES / "two.png"), prompt="Two people talk.", speakers=VOICES, frames=5)


def service(regions: str = "auto") -> EngineService:
    return EngineService(["model=tiny", "source=packaged", "sampler=turbo", f"regions={regions}"])


def test_equal_parts_stay_the_default_and_nothing_is_said() -> None:
    usual = EngineService(["model=tiny", "source=packaged"]).plan(TWO)
    assert [seat.kind for seat in usual.seats] == ["auto", "auto"]
    assert not any("regions=" in warning for warning in usual.warnings)


def test_found_people_are_the_regions_and_the_plan_names_the_finder() -> None:
    plan = service().plan(TWO)
    assert [seat.kind for seat in plan.seats] == ["found", "found"]
    assert plan.seats[0].box[2] <= plan.seats[1].box[0]
    assert any("regions=auto: found by 'drawn': speaker 1 at [" in warning for warning in plan.warnings)


def test_a_request_chooses_its_finder_by_an_override() -> None:
    plan = service("equal").plan(replace(TWO, overrides=("regions=drawn",)))
    assert [seat.kind for seat in plan.seats] == ["found", "found"]


def test_a_given_box_stays_and_its_person_is_not_given_to_another_voice() -> None:
    given = replace(VOICES[0], region=Region(box=(0.5, 0.0, 1.0, 1.0)))
    plan = service().plan(replace(TWO, speakers=(given, VOICES[1])))
    assert [seat.kind for seat in plan.seats] == ["box", "found"]
    assert plan.seats[1].box[2] <= plan.seats[0].box[0]


def test_too_few_people_are_an_error_that_names_the_field_and_the_preview_shows_who_was_found(tmp_path: Path) -> None:
    path = tmp_path / "who.png"
    alone = replace(TWO, image=str(EXAMPLES / "one.png"))
    with pytest.raises(RequestError, match="found 1 person, and 2 speakers need a region") as caught:
        service().preview(alone, path)
    assert caught.value.field == "request.speakers"
    with Image.open(path) as preview, Image.open(EXAMPLES / "one.png") as picture:
        scale = preview.width // picture.width
        plain = np.asarray(picture.convert("RGB").resize(preview.size, Image.Resampling.NEAREST))
        assert scale >= 1
        assert (np.asarray(preview.convert("RGB")) != plain).any()


def test_the_largest_of_too_many_people_are_taken_and_it_is_said(tmp_path: Path) -> None:
    pictures = [np.asarray(Image.fromarray(scene_of(7 * seed, people=1)[1]).resize((160, 96))) for seed in (1, 2, 3)]
    small = np.asarray(Image.fromarray(pictures[2]).resize((100, 60)))
    last = np.pad(small, ((36, 0), (30, 30), (0, 0)), mode="edge")
    Image.fromarray(np.concatenate([pictures[0], last, pictures[1]], axis=1)).save(tmp_path / "three.png")
    plan = service().preview(replace(TWO, image=str(tmp_path / "three.png"), fit="pad"), tmp_path / "who.png")
    assert any("found 3 people for 2 voices: the largest were taken" in warning for warning in plan.warnings)
    assert plan.seats[0].box[2] < plan.seats[1].box[0]


def test_nobody_found_is_said_and_divides_the_picture(tmp_path: Path) -> None:
    Image.new("RGB", (160, 96), "grey").save(tmp_path / "grey.png")
    plan = service().plan(replace(TWO, image=str(tmp_path / "grey.png")))
    assert [seat.kind for seat in plan.seats] == ["auto", "auto"]
    assert any("nobody was found, and the picture is divided into equal parts" in text for text in plan.warnings)
