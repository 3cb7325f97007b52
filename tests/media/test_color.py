"""Colours are matched as scikit-image's conversions and the reference's Lab transfer do it, only faster."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from engine.media import color
from engine.media.color import FLOOR, Statistics, color_statistics, match_color

GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "color_match.safetensors")


def frames(name: str) -> Tensor:
    return GOLDEN[name][0].clone()


def matched(given: Tensor, reference: Statistics, strength: float = 1.0) -> Tensor:
    result = given.clone()
    match_color(result, reference, strength)
    return result


def by_skimage(frame: npt.NDArray[np.float32], picture: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Match one frame (height, width, 3), -1 .. 1, to a picture with scikit-image."""
    from skimage.color import lab2rgb, rgb2lab

    def measured(lab: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        return lab.mean((0, 1), dtype=np.float64), lab.std((0, 1), dtype=np.float64)

    own, wanted = (rgb2lab(np.clip((pixels + 1) / 2, 0, 1)) for pixels in (frame, picture))
    (mean, deviation), (goal, spread) = measured(own), measured(wanted)
    result: npt.NDArray[np.float32] = lab2rgb(((own - mean) * (spread / deviation) + goal).astype(np.float32))
    return np.clip(result, 0, 1) * 2 - 1


@pytest.mark.parametrize(
    ("source", "strength", "wanted"),
    [("source", 1.0, "out_strength_1"), ("source", 0.5, "out_strength_05"), ("source_flat", 1.0, "out_flat_1")],
)
def test_colors_are_those_of_the_reference(source: str, strength: float, wanted: str) -> None:
    result = matched(frames(source), color_statistics(frames("reference")[:, 0]), strength)

    assert result.dtype == torch.float32
    # Powers are computed by logarithms, and sums in another order. Measured: 4e-6, and 3e-5 for flat frames.
    assert (result - frames(wanted)).abs().max() < 1e-4


@pytest.mark.parametrize("dark", [False, True])
def test_all_colors_are_converted_as_by_scikit_image(dark: bool) -> None:
    # Every third level of each channel, as far as a picture has it; dark ones follow the straight part of the curves.
    levels = torch.linspace(-1, -0.85 if dark else 0.6, 48)
    cube = torch.stack(torch.meshgrid(levels, levels, levels, indexing="ij")).reshape(3, 1, 48 * 48, 48)
    picture = (cube[:, 0].flip(0) * 1.3 + 0.3).clamp(-1, 1)

    result = matched(cube, color_statistics(picture))

    wanted = by_skimage(cube[:, 0].permute(1, 2, 0).numpy(), picture.permute(1, 2, 0).numpy())
    # Of -1 .. 1. Colours out of gamut are among them.
    assert (np.abs(wanted) == 1).any()
    assert np.abs(result[:, 0].permute(1, 2, 0).numpy() - wanted).max() < (4e-4 if dark else 1e-4)


def test_strength_nought_leaves_frames_as_they_are() -> None:
    given = frames("source")

    assert torch.equal(matched(given, color_statistics(frames("reference")[:, 0]), 0.0), given)


def test_frames_are_matched_each_by_itself_and_in_place_also_in_a_longer_video() -> None:
    reference = color_statistics(frames("reference")[:, 0])
    given = frames("source")
    whole = matched(given, reference)

    match_color(given[:, 3:], reference)

    assert torch.equal(given[:, 3:], whole[:, 3:])
    assert torch.equal(given[:, :3], frames("source")[:, :3])


def test_the_size_of_the_pieces_changes_nothing_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    reference = color_statistics(frames("reference")[:, 0])
    given = frames("source")
    whole = matched(given, reference)

    # Not a divisor of the picture's pixels.
    monkeypatch.setitem(color._PIECE, "cpu", 1000)

    assert (matched(given, reference) - whole).abs().max() < 1e-6


@pytest.mark.parametrize("level", [-1.0, -0.3, 0.4, 1.0])
def test_the_noise_of_a_flat_frame_does_not_become_a_picture(level: float) -> None:
    reference = color_statistics(frames("reference")[:, 0])
    noise = torch.randn(3, 2, 32, 32, generator=torch.Generator().manual_seed(0))
    given = torch.full_like(noise, level)
    # A hundredth of what rounding to 8 bits changes.
    given[:, 1] += noise[:, 1] * 2e-5

    flat, noisy = matched(given, reference).unbind(1)

    assert flat.flatten(1).std(1).max() < 1e-4
    # Stretched by at most the reference's deviation over the floor. Without the floor its deviation is the reference's.
    assert noisy.flatten(1).std(1).max() < 0.05
    assert (noisy.flatten(1).mean(1) - flat.flatten(1).mean(1)).abs().max() < 0.01


def test_the_floor_is_below_what_rounding_to_8_bits_makes_of_a_grey_picture() -> None:
    rounding = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0)) / 127.5 - 1 / 255

    assert color_statistics(rounding).deviation.min() > FLOOR


def test_it_is_much_faster_than_scikit_image_on_one_thread() -> None:
    picture = torch.rand(3, 1, 224, 416, generator=torch.Generator().manual_seed(0)) * 2 - 1
    reference = color_statistics(picture[:, 0] * 0.7)
    plain = picture[:, 0].permute(1, 2, 0).contiguous().numpy()
    dull = (picture[:, 0] * 0.7).permute(1, 2, 0).contiguous().numpy()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    ours, theirs = [], []
    try:
        # Interleaved, so that whatever else runs on the machine slows both.
        for _ in range(3):
            began = time.thread_time()
            by_skimage(plain, dull)
            middle = time.thread_time()
            match_color(picture.clone(), reference)
            ours.append(time.thread_time() - middle)
            theirs.append(middle - began)
    finally:
        torch.set_num_threads(threads)
    # Measured: 7, of which scikit-image's own statistics of the picture are a third.
    assert min(theirs) > 3 * min(ours)
