"""Pictures as people have them: each format and orientation, profiles, phones' formats, files that end too early."""

from __future__ import annotations

import io
import struct
import sys
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageCms, ImageOps

from engine.errors import RequestError
from engine.media.picture import look_at, read_mask, read_picture

FIELD = "request.image"
WIDTH, HEIGHT = 48, 32
#: Upper left, upper right, lower left and lower right corner of the upright picture.
CORNERS = ((250, 20, 20), (20, 200, 20), (20, 20, 250), (240, 240, 240))

Writer = Callable[[Image.Image, Path, int], None]


def corners() -> npt.NDArray[np.uint8]:
    upright = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for index, color in enumerate(CORNERS):
        row, column = divmod(index, 2)
        upright[row * 16 : row * 16 + 16, column * 24 : column * 24 + 24] = color
    return upright


def stored(upright: npt.NDArray[np.uint8], orientation: int) -> Image.Image:
    """Return what a camera stores that was held in this orientation, by Pillow's own operations."""
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    image = Image.fromarray(upright)
    return image.transpose(undo[orientation]) if orientation in undo else image


def exif(orientation: int) -> Image.Exif:
    result = Image.Exif()
    result[0x0112] = orientation
    return result


def xmp(orientation: int) -> bytes:
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" rdf:about="" '
        f'tiff:Orientation="{orientation}"/></rdf:RDF></x:xmpmeta>'
    ).encode()


def with_exif(kind: str, **options: object) -> Writer:
    def write(image: Image.Image, path: Path, orientation: int) -> None:
        image.save(path, kind, exif=exif(orientation), **options)

    return write


def with_xmp(kind: str, **options: object) -> Writer:
    def write(image: Image.Image, path: Path, orientation: int) -> None:
        image.save(path, kind, xmp=xmp(orientation), **options)

    return write


def write_mpo(image: Image.Image, path: Path, orientation: int) -> None:
    image.save(path, "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))], exif=exif(orientation), quality=95)


def write_late_png(image: Image.Image, path: Path, orientation: int) -> None:
    """Write a PNG whose EXIF follows its pixels."""
    image.save(path, "PNG")
    data = path.read_bytes()
    body = exif(orientation).tobytes().removeprefix(b"Exif\0\0")
    end = data.rindex(b"IEND") - 4
    path.write_bytes(data[:end] + chunk(b"eXIf", body) + data[end:])


def write_heic(image: Image.Image, path: Path, orientation: int) -> None:
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    # The plugin turns this into HEIF's own boxes irot and imir, as phones write them.
    image.save(path, "HEIF", exif=exif(orientation).tobytes(), quality=95)


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


WRITERS: dict[str, Writer] = {
    "jpeg": with_exif("JPEG", quality=95),
    "progressive jpeg": with_exif("JPEG", quality=95, progressive=True),
    "jpeg with xmp": with_xmp("JPEG", quality=95),
    "mpo": write_mpo,
    "png": with_exif("PNG"),
    "png with late exif": write_late_png,
    "webp": with_exif("WEBP", lossless=True),
    "webp with xmp": with_xmp("WEBP", lossless=True),
    "avif": with_exif("AVIF", quality=90),
    "tiff": with_exif("TIFF"),
    "tiff by libtiff": with_exif("TIFF", compression="tiff_lzw"),
    "heic": write_heic,
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", WRITERS)
def test_size_pixels_and_masks_agree_in_each_format_and_orientation(
    tmp_path: Path, kind: str, orientation: int
) -> None:
    path = tmp_path / "a"
    WRITERS[kind](stored(corners(), orientation), path, orientation)

    look = look_at(path, field=FIELD)
    pixels, mask = read_picture(path, field=FIELD), read_mask(path, field=FIELD)

    assert look.size == (WIDTH, HEIGHT)
    assert look.warnings == ()
    assert pixels.shape == (HEIGHT, WIDTH, 3)
    assert mask.shape == (HEIGHT, WIDTH)
    # The middle of each quarter; lossy formats are near.
    result = [pixels[y, x].astype(int) for y in (8, 24) for x in (12, 36)]
    assert all(np.abs(color - expected).max() < 24 for color, expected in zip(result, CORNERS, strict=True))
    assert mask[24, 36] > 200 > mask[8, 12]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pixels_are_turned_as_pillow_turns_them(tmp_path: Path, orientation: int) -> None:
    noise = np.random.default_rng(orientation).integers(0, 256, (5, 7, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png", exif=exif(orientation))

    with Image.open(tmp_path / "a.png") as image:
        assert np.array_equal(read_picture(tmp_path / "a.png", field=FIELD), np.asarray(ImageOps.exif_transpose(image)))


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_orientation_that_does_not_exist_turns_nothing(tmp_path: Path, value: int) -> None:
    Image.fromarray(corners()).save(tmp_path / "a.png", exif=exif(value))

    assert look_at(tmp_path / "a.png", field=FIELD).size == (WIDTH, HEIGHT)


def test_broken_exif_is_a_warning(tmp_path: Path) -> None:
    data = b"Exif\0\0II*\0\x08\0\0\0" + b"\xff" * 12
    Image.fromarray(corners()).save(tmp_path / "a.jpg", exif=data)

    look = look_at(tmp_path / "a.jpg", field=FIELD)
    assert look.size == (WIDTH, HEIGHT)
    assert read_picture(tmp_path / "a.jpg", field=FIELD).shape == (HEIGHT, WIDTH, 3)


# --- colours ----------------------------------------------------------------------------------------------------------


def matrix_profile(gamma: float, columns: tuple[tuple[float, float, float], ...] | None) -> bytes:
    """Return an ICC profile of three primaries (XYZ under D50), or of grey without any, with a plain gamma."""

    def fixed(value: float) -> bytes:
        return struct.pack(">i", round(value * 65536))

    def xyz(values: tuple[float, float, float]) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(map(fixed, values))

    text = b"test"
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(text) + 1) + text + b"\0" + b"\0" * 78,
        b"wtpt": xyz((0.9642, 1.0, 0.8249)),
        b"cprt": b"text\0\0\0\0none\0",
    }
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))
    if columns is None:
        tags[b"kTRC"] = curve
    else:
        for letter, values in zip("rgb", columns, strict=True):
            tags[f"{letter}XYZ".encode()] = xyz(values)
            tags[f"{letter}TRC".encode()] = curve
    table, body, at = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        data += b"\0" * (-len(data) % 4)
        table += name + struct.pack(">II", at + len(body), len(data))
        body += data
    size = at + len(body)
    space = b"GRAY" if columns is None else b"RGB "
    head = struct.pack(">I4sI4s4s4s", size, b"\0\0\0\0", 0x02400000, b"mntr", space, b"XYZ ")
    head += b"\0" * 12 + b"acsp" + b"\0" * 24 + struct.pack(">I", 0) + b"".join(map(fixed, (0.9642, 1.0, 0.8249)))
    return head.ljust(128, b"\0") + table + body


#: Primaries of Display P3 and Adobe RGB under D50.
P3 = ((0.51512, 0.2412, -0.00105), (0.29198, 0.69225, 0.04189), (0.1571, 0.06657, 0.78407))
ADOBE = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))


def by_arithmetic(
    color: tuple[int, int, int], gamma: float, columns: tuple[tuple[float, float, float], ...]
) -> npt.NDArray[np.float64]:
    """Return what a colour of such a profile is in sRGB (IEC 61966-2-1, its primaries under D50), 0 .. 255."""
    srgb = np.array(((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.7141))).T
    light = np.linalg.inv(srgb) @ np.array(columns).T @ (np.array(color) / 255) ** gamma
    light = light.clip(0, 1)
    result: npt.NDArray[np.float64] = (
        np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055) * 255
    )
    return result


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF", "HEIF"])
@pytest.mark.parametrize("columns", [P3, ADOBE], ids=["p3", "adobe"])
def test_profile_of_each_format_is_converted_to_srgb(
    tmp_path: Path, kind: str, columns: tuple[tuple[float, float, float], ...]
) -> None:
    if kind == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    skin = (200, 150, 120)
    path = tmp_path / "a"
    Image.new("RGB", (32, 32), skin).save(path, kind, icc_profile=matrix_profile(2.2, columns), quality=95)
    with Image.open(path) as image:
        actual = image.convert("RGB").getpixel((16, 16))
    assert isinstance(actual, tuple)

    result = read_picture(path, field=FIELD)[16, 16].astype(int)

    expected = by_arithmetic((int(actual[0]), int(actual[1]), int(actual[2])), 2.2, columns)
    assert np.abs(result - expected).max() <= 1.5
    assert np.abs(result - np.array(actual)).max() >= 4
    assert look_at(path, field=FIELD).warnings == ()


@pytest.mark.parametrize("mode", ["RGBA", "P", "L", "LA", "I;16"])
def test_profile_holds_for_each_mode_of_pixels(tmp_path: Path, mode: str) -> None:
    grey = mode in ("L", "LA", "I;16")
    profile = matrix_profile(1.0, None if grey else P3)
    color = (128, 128, 128) if grey else (200, 150, 120)
    if mode == "I;16":
        image = Image.fromarray(np.full((4, 4), 128 * 257, np.uint16))
    else:
        image = Image.new("RGB", (4, 4), color)
        image = image.quantize(4) if mode == "P" else image.convert(mode)
    image.save(tmp_path / "a.png", icc_profile=profile)

    result = read_picture(tmp_path / "a.png", field=FIELD)[2, 2].astype(float)

    srgb = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.7141))
    assert np.abs(result - by_arithmetic(color, 1.0, srgb if grey else P3)).max() <= 2


def test_srgb_profile_changes_no_byte(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(noise).save(tmp_path / "a.png", icc_profile=profile)

    assert np.array_equal(read_picture(tmp_path / "a.png", field=FIELD), noise)
    assert look_at(tmp_path / "a.png", field=FIELD).warnings == ()


@pytest.mark.parametrize(
    ("mode", "profile", "what"),
    [
        ("RGB", matrix_profile(2.2, P3)[:150], "cannot be read"),
        ("RGB", b"no profile at all", "cannot be read"),
        ("RGB", matrix_profile(2.2, None), "is for GRAY"),
        ("CMYK", matrix_profile(2.2, P3), "is for RGB"),
    ],
)
def test_profile_that_does_not_fit_is_passed_over_with_a_warning(
    tmp_path: Path, mode: str, profile: bytes, what: str
) -> None:
    image = Image.new("RGB", (16, 16), (200, 150, 120)).convert(mode)
    image.save(tmp_path / "a.tiff", icc_profile=profile)

    (warning,) = look_at(tmp_path / "a.tiff", field=FIELD).warnings
    assert what in warning
    assert np.array_equal(read_picture(tmp_path / "a.tiff", field=FIELD), np.asarray(image.convert("RGB")))


def test_profile_is_applied_before_transparency_meets_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (2, 1), (200, 150, 120, 128))
    image.putpixel((1, 0), (200, 150, 120, 0))
    image.save(tmp_path / "a.png", icc_profile=matrix_profile(2.2, P3))

    result = read_picture(tmp_path / "a.png", field=FIELD)

    opaque = by_arithmetic((200, 150, 120), 2.2, P3)
    assert np.abs(result[0, 0] - (opaque * 128 + 255 * 127) / 255).max() <= 2
    assert result[0, 1].tolist() == [255, 255, 255]


def test_mask_is_not_changed_by_its_profile(tmp_path: Path) -> None:
    Image.new("L", (4, 4), 120).save(tmp_path / "m.png", icc_profile=matrix_profile(1.0, None))

    assert (read_mask(tmp_path / "m.png", field=FIELD) == 120).all()


def test_transparent_value_of_a_sixteen_bit_picture_lies_over_white(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 514]], np.uint16)).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    at = data.index(b"IDAT") - 4
    (tmp_path / "a.png").write_bytes(data[:at] + chunk(b"tRNS", b"\0\0") + data[at:])

    assert read_picture(tmp_path / "a.png", field=FIELD)[0].tolist() == [[255] * 3, [2] * 3]
    assert read_mask(tmp_path / "a.png", field=FIELD)[0].tolist() == [0, 2]


@pytest.mark.parametrize(
    ("name", "body", "told"),
    [
        (b"cICP", bytes((12, 13, 0, 1)), "cICP"),
        (b"cICP", bytes((9, 16, 0, 1)), "cICP"),
        (b"cICP", bytes((1, 13, 0, 1)), ""),
        (b"gAMA", struct.pack(">I", 100_000), "gAMA"),
        (b"gAMA", struct.pack(">I", 45_455), ""),
        (b"cHRM", struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000), "cHRM"),
        (b"cHRM", struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000), ""),
    ],
)
def test_png_that_states_other_colours_without_a_profile_is_a_warning(
    tmp_path: Path, name: bytes, body: bytes, told: str
) -> None:
    Image.fromarray(corners()).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(data[:33] + chunk(name, body) + data[33:])

    warnings = look_at(tmp_path / "a.png", field=FIELD).warnings
    assert len(warnings) == bool(told)
    assert told in "".join(warnings)


# --- formats ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ICO", "QOI", "PCX", "SGI", "DDS", "DIB", "BMP", "TGA", "PPM", "GIF", "JPEG2000"])
def test_formats_without_orientation_are_read(tmp_path: Path, kind: str) -> None:
    Image.fromarray(corners()).save(tmp_path / "a", kind, **({"sizes": [(48, 32)]} if kind == "ICO" else {}))

    assert look_at(tmp_path / "a", field=FIELD).size == (WIDTH, HEIGHT)
    pixels = read_picture(tmp_path / "a", field=FIELD)
    assert np.abs(pixels[8, 12].astype(int) - CORNERS[0]).max() < 24


def test_icon_with_a_larger_picture_inside_is_refused_unopened(tmp_path: Path) -> None:
    inner = io.BytesIO()
    Image.new("1", (3000, 3000)).save(inner, "PNG")
    head = b"\0\0\1\0\1\0" + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(inner.getvalue()), 22)
    (tmp_path / "a.ico").write_bytes(head + inner.getvalue())

    tracemalloc.start()
    with pytest.raises(RequestError, match="3000 x 3000 pixels, more than the 1000000"):
        look_at(tmp_path / "a.ico", field=FIELD, max_pixels=1_000_000)
    tracemalloc.stop()


def test_heic_without_its_package_is_named_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_heic(Image.fromarray(corners()), tmp_path / "a.jpg", 1)
    monkeypatch.setattr("engine.media.picture_files.find_spec", lambda name: None)

    for look in (look_at, read_picture, read_mask):
        with pytest.raises(RequestError, match="HEIC") as caught:
            look(tmp_path / "a.jpg", field=FIELD)
        assert "pip install 'multitalk-engine[heic]'" in caught.value.hint
        assert caught.value.code == "missing_package"


@pytest.mark.parametrize(
    ("head", "told"),
    [
        (b"%PDF-1.7 ...", "PDF"),
        (b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom", "video"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"RIFF\0\0\0\0WAVEfmt ", "sound"),
        (b"I am no picture", "not a picture of a known format"),
    ],
)
def test_what_is_no_picture_is_called_what_it_is(tmp_path: Path, head: bytes, told: str) -> None:
    (tmp_path / "a.jpg").write_bytes(head)

    with pytest.raises(RequestError, match=told) as caught:
        look_at(tmp_path / "a.jpg", field=FIELD)
    assert caught.value.code == "picture_unreadable"
    assert caught.value.hint


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "HEIF"])
def test_owner_of_a_damaged_picture_is_not_told_to_give_its_format(tmp_path: Path, kind: str) -> None:
    if kind == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    photograph().save(tmp_path / "a", kind)
    data = (tmp_path / "a").read_bytes()
    for size in (28 if kind == "HEIF" else 13, len(data) // 3):
        (tmp_path / "a").write_bytes(data[:size])
        with pytest.raises(RequestError) as caught:
            look_at(tmp_path / "a", field=FIELD)
        assert caught.value.code == "picture_unreadable"
        assert "not a picture" not in caught.value.what
        assert "give a" not in caught.value.hint


# --- JPEG that ends too early -----------------------------------------------------------------------------------------


def photograph(width: int = 320, height: int = 480) -> Image.Image:
    """Return something with detail everywhere, and no row of middle grey."""
    y, x = np.mgrid[0:height, 0:width]
    ramps = np.stack([x * 200 / width + 40, y * 200 / height + 40, 60 + 0 * x], -1)
    noise = np.random.default_rng(1).integers(-30, 30, (height, width, 3))
    return Image.fromarray((ramps + noise).clip(0, 255).astype(np.uint8))


def cut(path: Path, size: int, **options: object) -> tuple[bytes, int]:
    """Write a JPEG without its last `size` bytes; return all of it."""
    photograph().save(path, "JPEG", quality=90, **options)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) - size])
    return data, size


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_jpeg_without_its_last_bytes_is_taken_with_a_warning(tmp_path: Path, size: int, progressive: bool) -> None:
    data, _ = cut(tmp_path / "a.jpg", size, progressive=progressive)

    look = look_at(tmp_path / "a.jpg", field=FIELD)
    result = read_picture(tmp_path / "a.jpg", field=FIELD)

    assert look.size == (320, 480)
    (warning,) = look.warnings
    assert "ends too early" in warning
    with Image.open(io.BytesIO(data)) as whole:
        assert np.array_equal(result[:440], np.asarray(whole)[:440])
    # What is missing repeats what is above: no grey.
    assert not (np.abs(result.astype(int) - 128) <= 1).all(axis=-1).any(axis=0).sum() > 40


def test_missing_rows_of_a_jpeg_are_counted_and_filled(tmp_path: Path) -> None:
    photograph().save(tmp_path / "a.jpg", quality=90)
    data = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(data[: int(len(data) * 0.96)])

    (warning,) = look_at(tmp_path / "a.jpg", field=FIELD).warnings
    result = read_picture(tmp_path / "a.jpg", field=FIELD)

    assert "of its 480 rows" in warning
    assert (result[-1, -160:] == result[-2, -160:]).all()
    assert abs(int(result[-1, :, 1].mean()) - int(result[440, :, 1].mean())) < 20


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.94, 0.96, 0.98, 0.995])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"restart_marker_rows": 1}])
def test_plan_judges_a_cut_jpeg_as_generate_does(
    tmp_path: Path, options: dict[str, object], share: float, orientation: int
) -> None:
    photograph().save(tmp_path / "a.jpg", quality=90, exif=exif(orientation), **options)  # type: ignore[arg-type]
    data = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(data[: int(len(data) * share)])

    def judged(call: Callable[[], object]) -> str:
        try:
            call()
        except RequestError as error:
            return str(error)
        return ""

    told = judged(lambda: look_at(tmp_path / "a.jpg", field=FIELD))
    assert told == judged(lambda: read_picture(tmp_path / "a.jpg", field=FIELD))
    if share <= 0.9 and "progressive" not in options:
        assert "more than 5% of its pixels are missing" in told
    if share >= 0.98:
        assert told == ""
    assert "JPEG, PNG" not in told


def test_progressive_jpeg_without_its_later_passes_is_refused(tmp_path: Path) -> None:
    photograph().save(tmp_path / "a.jpg", quality=90, progressive=True)
    data = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(data[: len(data) // 3])

    with pytest.raises(RequestError, match="later passes are missing"):
        look_at(tmp_path / "a.jpg", field=FIELD)


def test_what_is_wrong_with_picture_and_masks_is_in_the_plan(tmp_path: Path) -> None:
    from dataclasses import replace

    from example_request import REQUEST

    from engine import EngineService
    from engine.data import Region, Speaker

    photograph().save(tmp_path / "a.jpg", quality=90)
    data = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(data[:-2])
    speaker = Speaker(REQUEST.speakers[0].audio, Region(mask=str(tmp_path / "a.jpg")))

    plan = EngineService().plan(replace(REQUEST, image=str(tmp_path / "a.jpg"), speakers=(speaker,), overrides=()))

    told = [warning for warning in plan.warnings if "ends too early" in warning]
    assert len(told) == 2
    assert told[1].startswith("speakers[0].region.mask: ")


def test_grey_and_cmyk_jpegs_are_mended_too(tmp_path: Path) -> None:
    for mode in ("L", "CMYK"):
        photograph().convert(mode).save(tmp_path / "a.jpg", quality=90)
        data = (tmp_path / "a.jpg").read_bytes()
        (tmp_path / "a.jpg").write_bytes(data[: int(len(data) * 0.98)])
        assert "rows are not complete" in look_at(tmp_path / "a.jpg", field=FIELD).warnings[0]
        (tmp_path / "a.jpg").write_bytes(data[: int(len(data) * 0.8)])
        with pytest.raises(RequestError, match="more than 5%"):
            read_picture(tmp_path / "a.jpg", field=FIELD)


# --- media that cost more than they weigh -----------------------------------------------------------------------------


def chain(path: Path, pages: int) -> Path:
    """Write a TIFF of so many pages of one pixel, each a directory of its own."""
    entries = [(256, 3, 1, 1), (257, 3, 1, 1), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8)]
    entries += [(278, 3, 1, 1), (279, 4, 1, 1)]
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    size = len(directory) + 4
    parts = [b"II*\0\x0c\0\0\0", b"\x80\0\0\0"]
    for page in range(pages):
        parts += [directory, struct.pack("<I", 12 + size * (page + 1) if page + 1 < pages else 0)]
    path.write_bytes(b"".join(parts))
    return path


def test_pages_of_a_tiff_are_not_walked(tmp_path: Path) -> None:
    import time

    assert look_at(chain(tmp_path / "one.tiff", 1), field=FIELD).size == (1, 1)
    path = chain(tmp_path / "many.tiff", 150_000)

    began = time.process_time()
    with pytest.raises(RequestError, match="several pages"):
        look_at(path, field=FIELD)
    # Walking them took more than 54 seconds of processor time.
    assert time.process_time() - began < 2


def test_preview_of_a_raw_file_is_not_taken_for_the_photograph(tmp_path: Path) -> None:
    Image.fromarray(corners()).save(tmp_path / "a.tiff", tiffinfo={254: 1})

    with pytest.raises(RequestError, match="raw files"):
        look_at(tmp_path / "a.tiff", field=FIELD)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_large_picture_takes_seven_bytes_a_pixel(tmp_path: Path) -> None:
    import subprocess

    Image.new("RGBA", (4000, 4000), (1, 2, 3, 128)).save(tmp_path / "a.png")
    code = (
        "import sys, resource; from pathlib import Path\n"
        "from engine.media.picture import read_picture\n"
        "read_picture(Path(sys.argv[1]), field='x')\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "read_picture(Path(sys.argv[2]), field='x')\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)"
    )
    Image.new("RGBA", (8, 8)).save(tmp_path / "small.png")
    told = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "small.png"), str(tmp_path / "a.png")],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    # Four as decoded, three as made, and the strip at work; whole copies of each step took 19.
    assert int(told.stdout) < 9.5 * 16_000_000
