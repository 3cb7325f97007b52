"""Buckets, crops and regions are the reference's; what cannot be seen is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from safetensors.numpy import load_file

from engine.data import Canvas, Media, Plan, Region, Request, Seat, Speaker
from engine.errors import RequestError
from engine.media import canvas as canvas_stage
from engine.media.canvas import apply_canvas, choose_bucket, make_canvas, make_seats, region_masks
from engine.stages.preview import draw_preview

GOLDEN = Path(__file__).parents[1] / "golden"
CASES: list[dict[str, Any]] = json.loads((GOLDEN / "masks_and_resize.json").read_text())
ROWS: list[dict[str, Any]] = json.loads((GOLDEN / "buckets.json").read_text())["rows"]
AUTO = Region()


def buckets(resolution: str) -> dict[str, tuple[int, int]]:
    import yaml

    preset = yaml.safe_load((Path(__file__).parents[2] / "conf" / "model" / "multitalk.yaml").read_text())
    return {key: (size[0], size[1]) for key, size in preset["resolutions"][resolution]["buckets"].items()}


def square(size: int = 256, target: int = 128) -> Canvas:
    return make_canvas((size, size), (target, target))


def masks_of(*regions: Region, canvas: Canvas | None = None) -> tuple[npt.NDArray[np.float32], tuple[str, ...]]:
    return region_masks(regions, [None] * len(regions), canvas or square())


@pytest.mark.parametrize("resolution", ["480", "720"])
def test_buckets_are_those_of_the_reference(resolution: str) -> None:
    table = buckets(f"{resolution}p")
    for row in ROWS:
        expected = (row[resolution]["target_w"], row[resolution]["target_h"])
        assert choose_bucket((row["width"], row["height"]), table) == expected


def test_first_of_equally_near_buckets_wins() -> None:
    assert choose_bucket((100, 100), {"0.50": (1, 2), "1.50": (3, 2)}) == (2, 1)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["key"])
def test_masks_are_those_of_the_reference_with_its_boxes_transposed(case: dict[str, Any]) -> None:
    golden = load_file(GOLDEN / "masks_and_resize.safetensors")[f"{case['key']}.latent_mask"]
    canvas = make_canvas((case["src_w"], case["src_h"]), (case["target_w"], case["target_h"]))
    # The reference calls its boxes x, y but reads row, column: [row0, col0, row1, col1].
    boxes = case["bbox"] and [Region(box=(box[1], box[0], box[3], box[2])) for box in case["bbox"]]

    masks, warnings = masks_of(*(boxes or [AUTO] * case["persons"]), canvas=canvas)

    assert np.array_equal(masks, golden[: case["persons"] + 1])
    assert warnings == ()


@pytest.mark.parametrize("case", [case for case in CASES if "image_seed" in case], ids=lambda case: case["key"])
def test_pixels_are_those_of_the_reference(case: dict[str, Any]) -> None:
    golden = load_file(GOLDEN / "masks_and_resize.safetensors")
    width, height = case["src_w"], case["src_h"]
    y, x = np.mgrid[0:height, 0:width]
    ramps = np.stack([x * 255 / width, y * 255 / height, (x + y) * 255 / (height + width)], -1)
    noise = np.random.RandomState(case["image_seed"]).randint(-40, 40, (height, width, 3))
    image = np.clip(ramps + noise, 0, 255).astype(np.uint8)

    shown = apply_canvas(image, make_canvas((width, height), (case["target_w"], case["target_h"])))

    pixels = shown.transpose(2, 0, 1).astype(np.float32) / 255 * 2 - 1
    # Bytes are equal; what is left is the order of float32 operations.
    assert np.abs(pixels[:, ::8, ::8] - golden[f"{case['key']}.pixels_stride8"]).max() < 1e-6
    assert np.abs(pixels[:, 40:72, 100:132] - golden[f"{case['key']}.pixels_crop"]).max() < 1e-6


def test_crop_offset_is_rounded_half_to_even() -> None:
    assert make_canvas((101, 96), (96, 96)).offset == (2, 0)
    assert make_canvas((103, 96), (96, 96)).offset == (4, 0)


def test_pad_shows_all_of_the_picture_between_black_bars() -> None:
    canvas = make_canvas((100, 50), (64, 64), "pad")
    shown = apply_canvas(np.full((50, 100, 3), 200, np.uint8), canvas)

    assert (canvas.scaled, canvas.offset) == ((64, 32), (0, -16))
    assert (shown[16:48] == 200).all()
    assert not shown[:16].any()
    assert not shown[48:].any()


def test_bars_belong_to_the_background() -> None:
    masks, _ = masks_of(Region(box=(0, 0, 0.5, 1)), AUTO, canvas=make_canvas((128, 64), (128, 128), "pad"))

    assert masks.shape == (3, 16, 16)
    assert masks[0, 4:12, :8].all()
    assert masks[0].sum() == 64
    assert masks[2, :4].all()
    assert masks[2, 12:].all()


def test_very_flat_picture_is_not_blown_up(monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.random.default_rng(0).integers(0, 255, (40, 300, 3), np.uint8)
    canvas = make_canvas((300, 40), (64, 64))
    whole = apply_canvas(image, canvas).astype(int)
    monkeypatch.setattr(canvas_stage, "_WHOLE", 1)

    assert np.abs(apply_canvas(image, canvas) - whole).max() <= 1


def test_one_speaker_owns_picture_and_background() -> None:
    masks, warnings = masks_of(AUTO)

    assert masks.shape == (2, 16, 16)
    assert masks.dtype == np.float32
    assert masks.all()
    assert warnings == ()


def test_region_of_a_single_speaker_is_said_to_have_no_effect() -> None:
    masks, warnings = masks_of(Region(box=(0, 0, 100, 100)))

    assert masks.all()
    assert "no effect" in warnings[0]


def test_three_automatic_regions_are_parts_from_left_to_right() -> None:
    masks, _ = masks_of(AUTO, AUTO, AUTO, canvas=make_canvas((960, 320), (960, 320)))

    centers = [np.nonzero(mask)[1].mean() * 8 for mask in masks[:3]]
    assert centers == pytest.approx([160, 480, 800], abs=8)
    assert (masks.sum(axis=0) == 1).all()


def test_fractions_and_pixels_give_the_same_region() -> None:
    fractions, _ = masks_of(Region(box=(0, 0.25, 0.5, 1)), AUTO)
    pixels, _ = masks_of(Region(box=(0, 64, 128, 256)), AUTO)

    assert np.array_equal(fractions, pixels)


def test_x_of_a_box_goes_to_the_right() -> None:
    masks, _ = masks_of(Region(box=(0, 0, 128, 256)), Region(box=(128, 0, 256, 256)))

    assert masks[0, :, :8].all()
    assert not masks[0, :, 8:].any()


def test_mask_picture_is_a_region(tmp_path: Path) -> None:
    drawn = np.zeros((256, 256), np.uint8)
    drawn[:, :128], drawn[:, 128:] = 128, 127
    Image.fromarray(drawn).save(tmp_path / "m.png")

    masks, _ = region_masks([Region(mask="m.png"), AUTO], [tmp_path / "m.png", None], square())

    assert masks[0, :, :8].all()
    assert not masks[0, :, 8:].any()


def test_dark_mask_is_refused(tmp_path: Path) -> None:
    Image.new("L", (256, 256), 100).save(tmp_path / "m.png")

    with pytest.raises(RequestError, match="no bright pixel") as caught:
        region_masks([AUTO, Region(mask="m.png")], [None, tmp_path / "m.png"], square())
    assert caught.value.field == "request.speakers[1].region.mask"


def test_mask_of_another_shape_is_refused(tmp_path: Path) -> None:
    Image.new("L", (255, 256), 255).save(tmp_path / "m.png")

    with pytest.raises(RequestError, match="255 x 256 pixels, the picture 256 x 256"):
        region_masks([Region(mask="m.png"), AUTO], [tmp_path / "m.png", None], square())


def test_region_outside_the_picture_names_speaker_and_bounds() -> None:
    with pytest.raises(RequestError, match="outside the picture") as caught:
        masks_of(AUTO, Region(box=(300, 10, 400, 90)))
    assert caught.value.field == "request.speakers[1].region.box"
    assert "[0, 0, 256, 256]" in caught.value.hint


def test_region_cut_off_by_the_crop_suggests_pad() -> None:
    with pytest.raises(RequestError, match="cut off by the crop") as caught:
        masks_of(Region(box=(0, 0, 40, 100)), AUTO, canvas=make_canvas((400, 100), (128, 128)))
    assert "fit=pad" in caught.value.hint


def test_region_between_the_tokens_is_refused() -> None:
    with pytest.raises(RequestError, match="smaller than a 16-pixel token"):
        masks_of(Region(box=(16, 16, 32, 32)), AUTO)


def test_box_beyond_the_edge_is_cut_with_a_warning() -> None:
    masks, warnings = masks_of(Region(box=(128, 0, 300, 256)), Region(box=(0, 0, 128, 256)))

    assert masks[0, :, 8:].all()
    assert "speakers[0]" in warnings[0]
    assert "cut" in warnings[0]


def test_overlapping_boxes_are_a_warning() -> None:
    _, warnings = masks_of(Region(box=(0, 0, 192, 256)), Region(box=(128, 0, 256, 256)))

    assert warnings == ("speakers[0] and speakers[1] overlap in 50% of the smaller region",)


def test_other_number_of_regions_than_speakers_is_refused() -> None:
    with pytest.raises(RequestError, match="3 speakers but 2 regions"):
        region_masks([AUTO] * 3, [None] * 2, square())


def test_seats_say_who_sits_where_and_speaks_when() -> None:
    speakers = (Speaker("a.wav"), Speaker(None, Region(box=(128, 0, 256, 256))))
    media = Media(Path("a.png"), (256, 256), (Path("a.wav"), None), (1.5, 0.0), (None, None))

    seats, warnings = make_seats(speakers, media, square(), [(0.0, 1.5), (1.5, 1.5)])

    assert seats[0].kind == "auto"
    assert not seats[0].silent
    assert seats[0].seconds == 1.5
    assert seats[1] == Seat(1, (64, 0, 128, 128), "box", True, 0.0, 1.5)
    assert warnings == ()


def test_preview_shows_the_cropped_picture_with_tinted_regions(tmp_path: Path) -> None:
    Image.new("RGB", (256, 256), (90, 90, 90)).save(tmp_path / "a.png")
    canvas = square()
    request = Request("p", "a.png", (Speaker("a.wav"), Speaker(None)))
    media = Media(tmp_path / "a.png", (256, 256), (None, None), (1.0, 0.0), (None, None))
    seats, _ = make_seats(request.speakers, media, canvas, [(0, 1), (0, 0)])
    plan = Plan(
        *("tiny", "small", False, canvas, seats, 25, 25.0, 1.0, "direct", "para", 25, 25.0, ()),
        *("euler", 2, "cfg", 1, 2, 42, None),
    )

    draw_preview(media, request, plan, tmp_path / "p.png")

    with Image.open(tmp_path / "p.png") as image:
        shown = np.asarray(image)
    assert shown.shape == (640, 640, 3)
    assert len({tuple(shown[400, 160]), tuple(shown[400, 480]), tuple(shown[639, 320])}) == 3
    assert tuple(shown[639, 320]) == (90, 90, 90)


def test_preview_into_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    Image.new("RGB", (256, 256)).save(tmp_path / "a.png")
    media = Media(tmp_path / "a.png", (256, 256), (None,), (0.0,), (None,))
    request = Request("p", "a.png", (Speaker(None),), frames=1)
    plan = Plan(
        *("tiny", "small", False, square(), (), 25, 25.0, 1.0, "direct", "para", 25, 25.0, ()),
        *("euler", 2, "cfg", 1, 2, 42, None),
    )

    with pytest.raises(RequestError, match="cannot write"):
        draw_preview(media, request, plan, tmp_path / "no" / "p.png")
