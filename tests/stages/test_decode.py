"""Frames of a window: which are kept, how they are rounded and what the next window gets."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from engine.data import DecodeOptions, Window
from engine.errors import EngineError
from engine.loading.model import Model
from engine.loading.placement import Profile, place
from engine.media.color import color_statistics, match_color
from engine.stages.decode import Decoded, decode

FRAMES = 9


class Playback:
    """Decodes to given frames."""

    spatial, temporal, channels = 8, 4, 16

    def __init__(self, pixels: Tensor) -> None:
        self.pixels = pixels

    def encode(self, pixels: Tensor, *, cancel: Any = None) -> Tensor:
        raise AssertionError("nothing is encoded here")

    def decode(self, latents: Tensor, *, cancel: Any = None) -> Tensor:
        # The engine changes them in place.
        return self.pixels.clone()


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    return torch.rand(3, FRAMES, 8, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture(scope="module")
def reference() -> Any:
    return color_statistics(torch.rand(3, 8, 16, generator=torch.Generator().manual_seed(1)) * 1.5 - 0.5)


def run(
    pixels: Tensor,
    window: Window,
    reference: Any,
    strength: float = 0.0,
    motion_frames: int = 5,
    blend: int = 0,
    history: Tensor | None = None,
    latents: Tensor | None = None,
) -> Decoded:
    nothing = cast("Any", None)
    model = Model(nothing, Playback(pixels), nothing, nothing, nothing, place(Profile(), {}, device="cpu"), "cpu")
    return decode(
        model,
        torch.zeros(16, 3, 1, 2) if latents is None else latents,
        window,
        reference,
        DecodeOptions(motion_frames=motion_frames, color_strength=strength, blend=blend, fps=25.0),
        history=history,
    )


@pytest.mark.parametrize(
    ("motion", "keep", "shown", "last"),
    [
        (0, 9, slice(0, 9), slice(4, 9)),
        (0, 7, slice(0, 7), slice(2, 7)),
        (5, 4, slice(5, 9), slice(4, 9)),
        (5, 2, slice(5, 7), slice(2, 7)),
        (0, 3, slice(0, 3), slice(0, 3)),
    ],
)
@pytest.mark.parametrize("strength", [0.0, 0.6])
def test_new_frames_are_kept_and_the_last_go_on(
    motion: int, keep: int, shown: slice, last: slice, strength: float, pixels: Tensor, reference: Any
) -> None:
    matched = pixels.clone()
    match_color(matched, reference, strength)
    frames = matched.permute(1, 2, 3, 0).numpy()

    decoded = run(pixels, Window(0, 0, FRAMES, motion, keep), reference, strength)

    assert decoded.frames.fps == 25.0
    wanted = np.trunc(np.clip((frames[shown] + 1) / 2 * 255, 0, 255))
    assert decoded.frames.pictures.dtype == np.uint8
    assert np.array_equal(decoded.frames.pictures, wanted)
    np.testing.assert_allclose(decoded.history.permute(1, 2, 3, 0).numpy(), frames[last], atol=1e-6)


def test_pictures_are_cut_not_rounded(reference: Any) -> None:
    values = torch.tensor([-1.0, -0.9999, 0.0, 0.999, 1.0])
    pixels = torch.full((3, 5, 8, 8), 0.5)
    pixels[:, :, 0, 0] = values

    pictures = run(pixels, Window(0, 0, 5, 0, 5), reference).frames.pictures

    assert pictures[:, 0, 0, 0].tolist() == [0, 0, 127, 254, 255]


def test_the_history_keeps_nothing_else_alive(pixels: Tensor, reference: Any) -> None:
    history = run(pixels, Window(0, 0, FRAMES, 0, FRAMES), reference).history

    assert history.untyped_storage().nbytes() == 3 * 5 * 8 * 16 * 4


@pytest.mark.parametrize(("keep", "motion_frames"), [(4, 5), (2, 5), (4, 1)])
def test_a_window_is_eased_from_the_frame_that_was_shown(
    keep: int, motion_frames: int, pixels: Tensor, reference: Any
) -> None:
    shown = torch.full((3, motion_frames, 8, 16), 0.5)

    eased = run(pixels * 0.5, Window(0, 0, FRAMES, 5, keep), reference, 0.0, motion_frames, blend=2, history=shown)
    frames = pixels[:, 5 : 5 + keep] * 0.5
    for index, share in enumerate((2 / 3, 1 / 3)):
        frames[:, index] += share * (0.5 - pixels[:, 4] * 0.5)

    wanted = np.trunc(np.clip((frames.permute(1, 2, 3, 0).numpy() + 1) / 2 * 255, 0, 255))
    assert np.abs(eased.frames.pictures - wanted).max() <= 1
    new = min(keep, motion_frames)
    np.testing.assert_allclose(eased.history[:, -new:].numpy(), frames[:, -new:].numpy(), atol=1e-6)


def test_a_first_window_is_not_eased(pixels: Tensor, reference: Any) -> None:
    window = Window(0, 0, FRAMES, 0, FRAMES)

    assert np.array_equal(
        run(pixels, window, reference, blend=4).frames.pictures, run(pixels, window, reference).frames.pictures
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_window_with_one_value_that_is_no_number_is_an_error_of_its_own(
    value: float, pixels: Tensor, reference: Any
) -> None:
    latents = torch.zeros(16, 3, 1, 2)
    latents[3, 2, 0, 1] = value
    with pytest.raises(EngineError, match="window 4 contains values that are not finite after sampling") as caught:
        run(pixels, Window(3, 0, FRAMES, 0, FRAMES), reference, latents=latents)
    assert (caught.value.code, bool(caught.value.hint)) == ("broken_window", True)

    broken = pixels.clone()
    broken[1, 6, 4, 4] = value
    with pytest.raises(EngineError, match="after decoding") as caught:
        run(broken, Window(0, 0, FRAMES, 0, FRAMES), reference)
    assert caught.value.code == "broken_window"


def test_what_lies_beyond_the_frames_that_are_shown_breaks_no_window(pixels: Tensor, reference: Any) -> None:
    broken = pixels.clone()
    broken[:, 7:] = float("nan")
    assert run(broken, Window(0, 0, FRAMES, 0, 7), reference).frames.pictures.shape[0] == 7


@pytest.mark.parametrize("level", [-1.0, 0.0, 0.3, 1.0])
def test_a_window_of_one_colour_is_an_error_unless_the_picture_is(level: float, pixels: Tensor, reference: Any) -> None:
    flat = torch.full_like(pixels, level) + pixels * 0.001
    with pytest.raises(EngineError, match="one colour") as caught:
        run(flat.clamp(-1, 1), Window(0, 0, FRAMES, 5, 4), reference)
    assert caught.value.code == "broken_window"

    grey = color_statistics(torch.full((3, 8, 16), 0.1))
    assert run(flat.clamp(-1, 1), Window(0, 0, FRAMES, 5, 4), grey).frames.pictures.shape[0] == 4


def test_a_window_that_shows_something_in_one_frame_is_none_of_one_colour(pixels: Tensor, reference: Any) -> None:
    dark = torch.full_like(pixels, -1.0)
    dark[:, 3] = pixels[:, 3]
    assert run(dark, Window(0, 0, FRAMES, 0, FRAMES), reference).frames.pictures.shape[0] == FRAMES
