"""LongCat's sizes, picture and regions; where they differ from the engine's, it is the public code's rule."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from engine.errors import ConfigError, RequestError
from engine.media.canvas import MARGIN, apply_canvas, make_canvas
from engine.network.speakers import token_masks
from plugins.families.longcat import canvas


def rows(longcat: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(longcat.path("buckets.json").read_text("utf-8"))
    return found


def drawn(seed: int, height: int, width: int) -> Any:
    """The picture of the recordings, from its formula."""
    down, across = np.mgrid[0:height, 0:width].astype(float)
    ramps = [across * 255 / width, down * 255 / height, (across + down) * 255 / (height + width)]
    noise = np.random.RandomState(seed).randint(-40, 40, (height, width, 3))
    return np.clip(np.stack(ramps, axis=-1) + noise, 0, 255).astype(np.uint8)


def test_sizes_equal_the_recording(longcat: Any) -> None:
    # Larger factors belong to context parallelism of the public code, which has other tables.
    found = [row for row in rows(longcat) if row["scale"] in (16, 32)]

    assert found
    for row in found:
        assert list(canvas.choose_size(tuple(row["src"]), row["resolution"])) == row["target"]


def test_tables_have_the_published_numbers_of_entries_and_whole_tokens() -> None:
    assert {name: len(table) for name, table in canvas.BUCKETS.items()} == {"480p": 26, "720p": 31}
    sizes = [size for table in canvas.BUCKETS.values() for size in table.values()]
    assert not [size for size in sizes if size[0] % 32 or size[1] % 32]
    assert canvas.choose_size(None, "480p") == (480, 832)
    with pytest.raises(ConfigError, match="480p or 720p"):
        canvas.choose_size((480, 832), "1080p")


def test_pictures_and_masks_equal_the_recording(longcat: Any) -> None:
    recorded, header = longcat.tensors("masks_and_resize"), longcat.header("masks_and_resize")
    seed = int(header["image_seed_of_case"].partition(" ")[0])
    cases = [row for row in rows(longcat) if "case" in row]
    assert cases
    for row in cases:
        case, (height, width), size = row["case"], row["src"], tuple(row["target"])
        picture = torch.tensor(canvas.fit_picture(drawn(seed + case, height, width), size)).permute(2, 0, 1)
        pixels = picture / 127.5 - 1

        # Libraries of Pillow's may round a value otherwise.
        torch.testing.assert_close(
            pixels[:, ::8, ::8], recorded[f"case{case}.pixels_stride8"], atol=1.01 / 127.5, rtol=0
        )
        torch.testing.assert_close(
            pixels[:, 40:72, 100:132], recorded[f"case{case}.pixels_crop"], atol=1.01 / 127.5, rtol=0
        )
        for kind in ("default", "boxes"):
            expected = recorded.get(f"case{case}.{kind}.token_mask")
            if expected is not None:
                boxes = None if kind == "default" else [tuple(box) for box in row["boxes"]]
                masks = torch.tensor(canvas.region_masks((height, width), boxes))
                tokens = token_masks(canvas.fit_masks(masks, size), size[0] // 16, size[1] // 16)
                assert torch.equal(tokens.view(expected.shape), expected.bool()), (case, kind)


def test_the_rules_are_not_the_engines() -> None:
    """Kept on purpose: the weights were made with these rules, and the engine's differ in filter and margin."""
    picture = drawn(3, 130, 190)

    ours = canvas.fit_picture(picture, (64, 96))
    engine = apply_canvas(picture, make_canvas((190, 130), (96, 64)))

    assert np.abs(ours.astype(int) - engine.astype(int)).mean() > 1
    assert canvas.MARGIN == 2 * MARGIN


def test_regions_are_halves_with_a_margin_and_bystanders_do_not_reduce_the_background() -> None:
    masks = canvas.region_masks((20, 40), others=[(0, 0, 5, 5)])

    assert masks.shape == (4, 20, 40)
    assert masks[0, 2:18, 2:18].all()
    assert masks[1, 2:18, 22:38].all()
    assert masks[:2].sum() == 2 * 16 * 16
    assert np.array_equal(masks[2], 1 - (masks[0] | masks[1]))
    assert masks[3].sum() == 25


@pytest.mark.parametrize("boxes", [[(0, 0, 5, 5)], [(0, 0, 5, 5), (5, 5, 5, 9)], [(0, 0, 5, 5), (50, 0, 60, 5)]])
def test_boxes_that_hold_nothing_or_nobody_are_refused(boxes: Any) -> None:
    with pytest.raises(RequestError):
        canvas.region_masks((20, 40), boxes)


def test_a_soft_edge_is_inside() -> None:
    mask = torch.zeros(1, 10, 10)
    mask[0, :, :5] = 1

    soft = canvas.fit_masks(mask, (32, 32))

    assert soft.shape == (1, 32, 32)
    assert 0 < soft[0, 0, 16] < 1
    assert bool(token_masks(soft, 32, 32).view(32, 32)[0, 16])


@pytest.mark.parametrize(("frames", "rounded"), [(93, 93), (92, 93), (95, 93), (1, 1)])
def test_frames_are_rounded_to_whole_latent_frames(frames: int, rounded: int) -> None:
    assert canvas.frame_count(frames) == rounded
