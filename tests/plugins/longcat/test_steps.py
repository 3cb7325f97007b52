"""LongCat's schedules, guidance and the walk of a window, apart from recordings."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from engine.errors import Cancelled, ConfigError, RequestError
from plugins.families.longcat.guidance import AvatarGuidance
from plugins.families.longcat.schedules import Levels, sigmas
from plugins.families.longcat.walk import as_bytes, denoise_window, finish, hand_over, start_first, start_next


def test_a_tail_of_low_noise_ends_continuations_of_version_1_0_alone() -> None:
    def steps(name: str, count: int, shift: float, *, continuation: bool, distilled: bool = False) -> int:
        return len(sigmas(name, count, shift, distilled=distilled, continuation=continuation)) - 1

    assert steps("1.0", 50, 12, continuation=False) == 50
    assert steps("1.0", 50, 12, continuation=True) == 56
    assert steps("1.0", 6, 12, continuation=True) == 15
    assert steps("1.5", 50, 7, continuation=True) == 50
    assert steps("1.5", 8, 7, continuation=True, distilled=True) == 8


def test_schedules_fall_from_one_to_zero() -> None:
    for name, count, distilled in (("1.0", 50, False), ("1.0", 16, True), ("1.5", 8, True), ("1.5", 1, False)):
        levels = sigmas(name, count, 7.0, distilled=distilled, continuation=True)
        assert levels[0] == 1
        assert levels[-1] == 0
        assert sorted(levels, reverse=True) == list(levels)


@pytest.mark.parametrize(("name", "steps", "distilled"), [("1.5", 4, True), ("1.0", 51, True), ("1.5", 0, False)])
def test_steps_that_a_model_was_not_made_for_are_refused(name: str, steps: int, distilled: bool) -> None:
    with pytest.raises(ConfigError) as caught:
        sigmas(name, steps, 7.0, distilled=distilled, continuation=False)

    assert caught.value.field == "sampler.steps"


@pytest.mark.parametrize(
    ("text", "audio", "branches"),
    [
        (1, 1, ("cond",)),
        (4, 1, ("cond", "drop_text")),
        (1, 4, ("cond", "drop_text", "uncond")),
        (4, 4, ("cond", "drop_text", "uncond")),
        (4, 0.5, ("cond", "drop_text", "uncond")),
    ],
)
def test_passes_without_weight_are_left_out(text: float, audio: float, branches: tuple[str, ...]) -> None:
    guidance = AvatarGuidance(text, audio)
    made = {name: torch.full((2,), value) for name, value in zip(("cond", "drop_text", "uncond"), (5.0, 2.0, 1.0))}  # noqa: B905

    combined = guidance.combine({name: made[name] for name in guidance.branches})

    assert guidance.branches == branches
    if branches != ("cond",):
        expected = 1 + text * (5 - 2) + audio * (2 - 1)
        torch.testing.assert_close(combined, torch.full((2,), float(expected)))
    else:
        assert torch.equal(combined, made["cond"])


@pytest.mark.parametrize("scales", [(1, 0.5), (0.7, 1), (float("nan"), 1)])
def test_scales_without_effect_are_refused(scales: tuple[float, float]) -> None:
    """Declined quirk: the reference ignores scales of at most 1 without a word."""
    with pytest.raises(ConfigError):
        AvatarGuidance(*scales)


def window(avatar: Any, start: Any, model: Any, **options: Any) -> torch.Tensor:
    given = avatar.conditions(start.layout)
    conditions = {"cond": model.embed_conditions(**given)}
    return denoise_window(model, start, conditions, Levels((1.0, 0.5, 0.0)), AvatarGuidance(1, 1), **options)


def test_a_picture_is_kept_and_a_continuation_begins_with_the_encoded_history(avatar: Any) -> None:
    model, noise = avatar.model().requires_grad_(False), torch.randn(16, 4, *avatar.grid)
    picture = torch.randn(16, 1, *avatar.grid)
    first = start_first(noise, picture)
    latents = finish(first, window(avatar, first, model))
    carry = hand_over(latents, torch.rand(3, 13, 32, 64) * 2 - 1, 5, None)
    encoded = torch.randn(16, 2, *avatar.grid)
    kept = start_next(noise, carry, encoded, keeps_latents=True)
    again = start_next(noise, carry, encoded, keeps_latents=False)

    assert torch.equal(latents[:, :1], picture)
    assert torch.equal(carry.reference, picture)
    assert kept.layout.total == 5
    assert torch.equal(kept.given[:, 1:], latents[:, -2:])
    assert torch.equal(again.given[:, 1:], encoded)
    for start in (kept, again):
        assert torch.equal(start.given[:, :1], picture)
        result = finish(start, window(avatar, start, model))
        assert result.shape == latents.shape
        assert torch.equal(result[:, :2], encoded)
        # The reference of all windows is the first window's.
        assert torch.equal(hand_over(result, torch.zeros(3, 13, 32, 64), 5, carry).reference, picture)


def test_the_history_is_cut_to_8_bits_and_not_rounded() -> None:
    """Kept on purpose: the public code cuts values off, and the next window's given latents follow from them."""
    pixels = torch.tensor([-1.0, 1.0, -1 + 2 * 100.9 / 255, 7.0])

    assert torch.equal(as_bytes(pixels), torch.tensor([0, 255, 100, 255]) / 127.5 - 1)


def test_steps_are_counted_and_stop_once_cancelled(avatar: Any) -> None:
    model, start = avatar.model(), start_first(torch.randn(16, 4, *avatar.grid))
    cancel, steps = threading.Event(), []

    def on_step(step: int, total: int) -> None:
        steps.append((step, total))
        cancel.set()

    window(avatar, start, model, on_step=lambda step, total: steps.append((step, total)))
    assert steps == [(1, 2), (2, 2)]
    with pytest.raises(Cancelled):
        window(avatar, start, model, on_step=on_step, cancel=cancel)
    assert len(steps) == 3


def test_latents_of_another_size_are_refused(avatar: Any) -> None:
    noise, picture = torch.randn(16, 4, 4, 8), torch.randn(16, 1, 4, 8)
    carry = hand_over(noise, torch.zeros(3, 13, 32, 64), 5, None)
    for call, field in (
        (lambda: start_first(noise, picture[:, :, :2]), "picture"),
        (lambda: start_first(noise, noise), "picture"),
        (lambda: start_next(noise, carry, picture[:8], keeps_latents=True), "encoded"),
        (lambda: start_next(noise[:, :2], carry, picture, keeps_latents=True), "carry"),
        (lambda: hand_over(noise, torch.zeros(3, 13, 32, 64), 4, None), "motion"),
    ):
        with pytest.raises(RequestError) as caught:
            call()
        assert caught.value.field == field
