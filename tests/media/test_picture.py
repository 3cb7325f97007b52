"""Pictures of every kind come out as upright RGB, or are refused by name."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from engine.errors import RequestError
from engine.media.picture import look_at, read_mask, read_picture

FIELD = "request.image"
RED = (250, 10, 20)


def save(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_turns_picture_upright(tmp_path: Path, orientation: int) -> None:
    upright = np.arange(6 * 4 * 3, dtype=np.uint8).reshape(6, 4, 3)
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "a.png", Image.fromarray(np.ascontiguousarray(stored)), exif=exif)

    assert np.array_equal(read_picture(path, field=FIELD), upright)
    assert look_at(path, field=FIELD).size == (4, 6)


def test_transparency_lies_over_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (4, 2), (*RED, 255))
    image.putpixel((0, 0), (0, 0, 0, 0))
    pixels = read_picture(save(tmp_path / "a.png", image), field=FIELD)

    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert pixels[0, 1].tolist() == list(RED)


def test_transparent_palette_entry_lies_over_white(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, 0, 0, 255])
    image.putpixel((1, 0), 1)
    pixels = read_picture(save(tmp_path / "a.png", image, transparency=1), field=FIELD)

    assert pixels[0].tolist() == [list(RED), [255, 255, 255]]


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    values = np.array([[0, 257, 128 * 257, 65535]], np.uint16)
    pixels = read_picture(save(tmp_path / "a.png", Image.fromarray(values)), field=FIELD)

    assert pixels[0].tolist() == [[0] * 3, [1] * 3, [128] * 3, [255] * 3]


@pytest.mark.parametrize("mode", ["L", "1", "LA"])
def test_grey_pictures_become_rgb(tmp_path: Path, mode: str) -> None:
    image = Image.new("L", (3, 2), 255).convert(mode)

    assert np.array_equal(read_picture(save(tmp_path / "a.png", image), field=FIELD), np.full((2, 3, 3), 255))


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    pixels = read_picture(save(tmp_path / "a.jpg", image, quality=100), field=FIELD)

    assert pixels[4, 4, 0] > 200
    assert pixels[4, 4, 1] < 60


def test_broken_profile_of_cmyk_is_passed_over(tmp_path: Path) -> None:
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    path = save(tmp_path / "a.jpg", image, quality=100, icc_profile=profile[:200])

    assert read_picture(path, field=FIELD)[4, 4, 0] > 200


@pytest.mark.parametrize(
    ("suffix", "what"), [("gif", "is animated"), ("png", "is animated"), ("webp", "is animated"), ("tiff", "pages")]
)
def test_several_pictures_in_one_file_are_refused(tmp_path: Path, suffix: str, what: str) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    path = save(tmp_path / f"a.{suffix}", frames[0], save_all=True, append_images=frames[1:])

    with pytest.raises(RequestError, match=what) as caught:
        read_picture(path, field=FIELD)
    assert caught.value.field == FIELD


def test_still_gif_is_read(tmp_path: Path) -> None:
    path = save(tmp_path / "a.gif", Image.new("RGB", (8, 4), "white"))

    assert read_picture(path, field=FIELD).shape == (4, 8, 3)


def test_too_many_pixels_are_refused_before_decoding(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", Image.new("1", (3000, 2000)))
    path.write_bytes(path.read_bytes()[:60])

    with pytest.raises(RequestError, match="3000 x 2000 pixels, more than the 5000000"):
        read_picture(path, field=FIELD, max_pixels=5_000_000)


def test_decompression_bomb_is_refused(tmp_path: Path) -> None:
    data = io.BytesIO()
    Image.new("1", (1, 1)).save(data, "PNG")
    header = bytearray(data.getvalue())
    header[16:24] = (40_000).to_bytes(4, "big") * 2
    import zlib

    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
    path = tmp_path / "a.png"
    path.write_bytes(header)

    with pytest.raises(RequestError, match="pixels"):
        read_picture(path, field=FIELD)


@pytest.mark.parametrize(("suffix", "what"), [("png", "cannot be read"), ("jpg", "ends too early")])
def test_half_a_picture_is_an_error(tmp_path: Path, suffix: str, what: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    path = save(tmp_path / f"a.{suffix}", Image.fromarray(noise))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    with pytest.raises(RequestError, match=what) as caught:
        read_picture(path, field=FIELD)
    # Its owner has a file of that format.
    assert suffix.upper() not in caught.value.hint
    assert "JPEG, PNG" not in caught.value.hint


def test_text_is_not_a_picture(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_text("I am no picture")

    with pytest.raises(RequestError, match="not a picture") as caught:
        look_at(path, field=FIELD)
    assert "PNG" in caught.value.hint


def test_floating_point_picture_is_refused_by_name(tmp_path: Path) -> None:
    path = save(tmp_path / "a.tiff", Image.new("F", (4, 4)))

    with pytest.raises(RequestError, match="floating-point"):
        read_picture(path, field=FIELD)


def test_transparency_of_a_mask_lies_over_black(tmp_path: Path) -> None:
    image = Image.new("RGBA", (2, 1), (255, 255, 255, 255))
    image.putpixel((0, 0), (255, 255, 255, 0))

    assert read_mask(save(tmp_path / "m.png", image), field=FIELD).tolist() == [[0, 255]]
