"""A model that knows drawn people alone says of other pictures, before the work, that it is the wrong one."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from engine import EngineService, Progress, Request, Speaker
from engine.stages.familiar import FILE, Familiar, fit, read_familiar
from scripts.train_tiny.pictures import WEIGHTS, drawn

EXAMPLES = Path(__file__).parents[2] / "engine" / "examples"


@pytest.fixture(scope="module")
def known() -> Familiar:
    found = read_familiar(WEIGHTS)
    assert found is not None
    return found


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def photo_like(seed: int, size: tuple[int, int] = (400, 300)) -> Image.Image:
    """Return blurred light and dark with a camera's grain, through JPEG."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)
    grain = rng.normal(0, 6, (size[1], size[0], 1))
    noisy = np.clip(np.asarray(coarse, np.float64) * 0.6 + 40 + grain, 0, 255).astype(np.uint8)
    packed = io.BytesIO()
    Image.fromarray(noisy).save(packed, "JPEG", quality=88)
    return Image.open(packed)


def page_of_text() -> Image.Image:
    page = Image.new("RGB", (640, 480), "white")
    pen = ImageDraw.Draw(page)
    for line in range(40):
        pen.text((10, 12 * line), "who speaks in this picture, and what is it that they say? " * 3, fill="black")
    return page


@pytest.mark.parametrize("name", ["one.png", "two.png"])
def test_the_examples_are_known(known: Familiar, name: str) -> None:
    assert known.knows(read(EXAMPLES / name))


@pytest.mark.slow
def test_held_out_drawn_people_are_known_and_by_jpeg_and_size_too(known: Familiar) -> None:
    pictures = list(drawn(45, 930_000_000, "held_out"))

    assert sum(known.knows(pixels) for pixels in pictures) >= 44


@pytest.mark.parametrize(
    "picture",
    [
        *(partial(photo_like, seed) for seed in range(4)),
        partial(photo_like, 5, (3000, 2000)),
        lambda: photo_like(6).filter(ImageFilter.GaussianBlur(6)),
        lambda: photo_like(7).convert("L"),
        page_of_text,
        partial(Image.new, "RGB", (300, 300), "red"),
        partial(Image.effect_noise, (320, 200), 80),
        partial(Image.linear_gradient, "L"),
    ],
)
def test_other_pictures_are_strange(known: Familiar, picture: Callable[[], Image.Image]) -> None:
    assert not known.knows(np.asarray(picture().convert("RGB")))


@pytest.mark.slow
def test_a_fit_keeps_its_share_and_comes_back_from_its_file(tmp_path: Path) -> None:
    import json

    pictures = list(drawn(40, 940_000_000, "train"))
    found = fit(pictures, what="people", instead="take another", share=0.9)
    (tmp_path / FILE).write_text(json.dumps(found.to_json()))
    again = read_familiar(tmp_path)

    assert again is not None
    assert sum(found.knows(pixels) for pixels in pictures) == 36
    assert [again.distance(pixels) for pixels in pictures] == pytest.approx(
        [found.distance(pixels) for pixels in pictures], rel=1e-3
    )
    assert read_familiar(tmp_path / "other") is None


def request(image: Path) -> Request:
    return Request("a woman speaks", str(image), (Speaker(str(EXAMPLES / "one.flac")),), frames=5)


def test_a_photograph_is_warned_of_before_the_work_with_what_to_do(tmp_path: Path) -> None:
    photo = tmp_path / "photo.jpg"
    photo_like(3).save(photo)
    seen: list[Progress] = []
    service = EngineService(["model=tiny", "sampler=turbo", "sink=disk", f"sink.folder={tmp_path}"])
    with closing(service):
        planned = service.plan(request(photo))
        delivery = service.generate(request(photo), progress=seen.append)
        clean = service.plan(request(EXAMPLES / "one.png"))

    (warning,) = (text for text in planned.warnings if "drawn people" in text)
    assert "multitalk models pull" in warning
    assert "recipe=card-24gb" in warning
    assert warning in delivery.warnings
    # Known before weights are loaded.
    assert all(warning in progress.warnings for progress in seen if progress.stage not in {"start", "read"})
    assert any(progress.stage == "load" for progress in seen)
    assert not any("drawn people" in text for text in clean.warnings)
