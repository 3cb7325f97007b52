"""Finders find everybody and nobody else, from left to right, in boxes that do not overlap."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

import engine
from engine.errors import RequestError
from engine.people import faces, find_people
from engine.people.found import persons
from scripts.find_people import photograph
from scripts.train_people.__main__ import scene_of

EXAMPLES = Path(engine.__file__).parent / "examples"

photographs = pytest.mark.skipif(not faces.installed(), reason="needs the extra people")


def test_the_people_of_held_out_drawings_are_found_from_left_to_right() -> None:
    for seed in range(950_000, 950_006):
        scene, picture = scene_of(seed, "held_out")
        found = find_people(picture, "drawn")
        assert len(found) == len(scene.people)
        for one, person in zip(found, scene.people, strict=True):
            assert one.face[0] < person.x / scene.size[0] < one.face[2]
            assert one.face[1] < person.y / scene.size[1] < one.face[3]
            assert one.box[3] == 1


def test_nobody_is_found_where_nobody_is() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (96, 160, 3), dtype=np.uint8)
    for picture in (np.full((96, 160, 3), 128, np.uint8), noise, photograph("coffee")):
        assert find_people(picture, "drawn") == ()


def test_a_logo_and_texts_are_no_drawn_people() -> None:
    pictures = [photograph("logo"), photograph("page"), photograph("cat"), photograph("rocket")[::2, ::2].copy()]
    rng = np.random.default_rng(0)
    for text in ("SALE 50%", "O8@Q", "0 0 0", "Hello\nWorld"):
        paper, ink = (tuple(int(value) for value in rng.integers(0, 256, 3)) for _ in range(2))
        image = Image.new("RGB", (320, 240), paper)
        ImageDraw.Draw(image).text((20, 30), text, font=ImageFont.load_default(size=70), fill=ink)
        pictures.append(np.asarray(image))
    assert [find_people(picture, "drawn") for picture in pictures] == [()] * len(pictures)


def test_a_face_without_a_colour_of_skin_is_no_drawn_person() -> None:
    with Image.open(EXAMPLES / "one.png") as image:
        picture = np.asarray(image.convert("RGB"))
    assert len(find_people(picture, "drawn")) == 1
    # Blue for red, as of a robot: its shape alone is not enough.
    assert find_people(picture[..., ::-1].copy(), "drawn") == ()


def test_a_path_a_picture_and_an_array_give_the_same_people() -> None:
    path = EXAMPLES / "two.png"
    with Image.open(path) as image:
        found = find_people(image.convert("RGB"))
        assert len(found) == 2
        assert find_people(str(path)) == find_people(path) == found == find_people(np.asarray(image.convert("RGB")))


def test_boxes_of_neighbours_do_not_overlap_and_keep_their_faces() -> None:
    sides = [(0.0, 20.0, 30.0, 60.0), (50.0, 10.0, 90.0, 70.0), (85.0, 70.0, 110.0, 99.0)]
    found = persons([(box, 0.9) for box in sides], (100, 120), "faces")
    for one, other in itertools.pairwise(found):
        left, right = one.box, other.box
        across = min(left[2], right[2]) - max(left[0], right[0])
        assert across <= 0 or min(left[3], right[3]) - max(left[1], right[1]) <= 0
    assert [one.face[0] for one in found] == sorted(one.face[0] for one in found)


def test_a_wrong_finder_and_a_wrong_array_are_named() -> None:
    with pytest.raises(RequestError, match="'noses' is not a finder"):
        find_people(EXAMPLES / "two.png", "noses")
    with pytest.raises(RequestError, match="float64"):
        find_people(np.zeros((4, 4, 3)))


def test_finding_people_imports_no_torch() -> None:
    code = f"import sys; from engine.people import find_people; find_people({str(EXAMPLES / 'one.png')!r}, 'drawn')"
    subprocess.run([sys.executable, "-c", code + "; assert 'torch' not in sys.modules"], check=True)


@photographs
def test_the_face_of_the_astronaut_is_found_and_no_face_in_other_photographs() -> None:
    [found] = find_people(photograph("astronaut"))
    assert found.finder == "faces"
    # The face's middle in that picture, (225, 110) of 512.
    assert found.face[0] < 225 / 512 < found.face[2]
    assert found.face[1] < 110 / 512 < found.face[3]
    assert found.box[3] == 1
    assert find_people(photograph("coffee"), "faces") == ()


@photographs
def test_the_outline_of_the_astronaut_has_both_shoulders_and_not_the_rocket_behind() -> None:
    [found] = find_people(photograph("astronaut"), "people")
    [face] = find_people(photograph("astronaut"), "faces")
    assert (found.finder, found.face) == ("people", face.face)
    # In that picture the shoulders reach from 0.08 to 0.7, and the rocket begins at 0.7.
    assert 0.0 <= found.box[0] < 0.15
    assert 0.6 < found.box[2] < 0.8
    assert found.box[3] == 1
    assert find_people(photograph("astronaut"), "people") == (found,)
    assert find_people(photograph("coffee"), "people") == ()
