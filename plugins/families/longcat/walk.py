"""The walk of one window: its given frames, the steps of its noisy frames, and what it hands to the next window."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.cancel import check
from engine.components import CancelToken, Guidance
from engine.errors import RequestError
from plugins.families.longcat.attention import KeyValueCache
from plugins.families.longcat.frames import HIDDEN_RANGE, REFERENCE_POSITION, FrameLayout
from plugins.families.longcat.transformer import AvatarConditions, AvatarTransformer3DModel


@dataclass(frozen=True)
class Carry:
    """What a finished window hands to the next. All float32."""

    #: Latent frame 0 of the first window's result, (16, 1, h, w); the same for all windows.
    reference: Tensor
    #: The last latent frames of the window, (16, M, h, w), and its last 4 (M - 1) + 1 pixel frames, (3, ..., H, W) in
    #: -1 .. 1, as they are after rounding to 8 bits.
    latents: Tensor
    pixels: Tensor


@dataclass(frozen=True)
class Start:
    """A window before its first step. All float32."""

    layout: FrameLayout
    #: (16, C, h, w): the reference and the other given frames; C may be 0.
    given: Tensor
    #: (16, noisy frames, h, w).
    noise: Tensor
    #: Latents that replace the first frames of a continuation's result: the encoded frames of the window before.
    encoded: Tensor | None = None


def start_first(noise: Tensor, picture: Tensor | None = None) -> Start:
    """Begin the first window: `noise` (16, T, h, w) with the picture's latents (16, 1, h, w) as frame 0, if any."""
    given = noise[:, :0] if picture is None else picture
    _check_frames("picture", given, noise, most=1)
    count = given.shape[1]
    return Start(FrameLayout(noise.shape[1], count), given.to(noise), noise[:, count:])


def start_next(
    noise: Tensor,
    carry: Carry,
    encoded: Tensor,
    *,
    keeps_latents: bool,
    position: int = REFERENCE_POSITION,
    hidden_range: int = HIDDEN_RANGE,
) -> Start:
    """Begin a window that continues another: `noise` (16, T, h, w), of which the first M frames are given.

    `encoded` is `carry.pixels` encoded, (16, M, h, w). `keeps_latents`: the given frames are `carry.latents` (1.0),
    otherwise `encoded` (1.5). `position` and `hidden_range`: see `FrameLayout`.
    """
    given = carry.latents if keeps_latents else encoded
    _check_frames("carry", given, noise, most=noise.shape[1] - 1)
    _check_frames("encoded", encoded, noise, most=noise.shape[1] - 1)
    count = given.shape[1]
    layout = FrameLayout(1 + noise.shape[1], 1 + count, True, position, hidden_range)
    return Start(layout, torch.cat([carry.reference, given], dim=1).to(noise), noise[:, count:], encoded.to(noise))


@torch.no_grad()
def denoise_window(
    model: AvatarTransformer3DModel,
    start: Start,
    conditions: Mapping[str, AvatarConditions],
    sigmas: Sequence[float],
    guidance: Guidance,
    *,
    cached: bool = True,
    batched: bool = False,
    on_step: Callable[[int, int], None] | None = None,
    cancel: CancelToken | None = None,
) -> Tensor:
    """Make Euler steps along `sigmas` (1 .. 0): return the noisy frames' clean latents, float32 (16, noisy, h, w).

    `conditions` has one entry for each pass of `guidance`. `cached`: keys and values of given frames are computed once
    for all steps and passes; the result is the same but for rounding. `batched`: the passes of a step are one forward.
    Only noisy frames are stepped. Raises Cancelled between passes and steps once `cancel` is set.
    """
    device = next(iter(conditions.values())).context.device
    given, latents = start.given.to(device)[None], start.noise.to(device)[None]
    guidance.reset()
    cache: KeyValueCache | None = None
    if cached and start.layout.given:
        cache = model.fill_cache(given, start.layout)
    # Copied at once: a copy in each step would make the host wait for the step before.
    times = torch.tensor([1000 * sigma for sigma in sigmas], dtype=torch.float32).to(device)
    steps = len(sigmas) - 1
    for index in range(steps):
        inputs = latents if cache is not None else torch.cat([given, latents], dim=2)
        predictions: dict[str, Tensor] = {}
        for names in [guidance.branches] if batched else [(name,) for name in guidance.branches]:
            check(cancel, "denoise")
            passes = [conditions[name] for name in names]
            (output,) = model(inputs, times[index : index + 1], passes, cache)
            predictions |= zip(names, output[:, None], strict=True)
        latents = latents + (sigmas[index] - sigmas[index + 1]) * guidance.combine(predictions)
        if on_step is not None:
            on_step(index + 1, steps)
    check(cancel, "denoise")
    return latents[0]


def finish(start: Start, denoised: Tensor) -> Tensor:
    """Return the latents of the whole window, (16, T, h, w), to be decoded: without the reference.

    In both versions the first frames of a continuation are the encoded frames of the window before.
    """
    given = start.encoded if start.encoded is not None else start.given
    return torch.cat([given.to(denoised), denoised], dim=1)


def hand_over(latents: Tensor, pixels: Tensor, motion: int, before: Carry | None) -> Carry:
    """Return what the next window needs of a finished one: `latents` of `finish`, and `pixels` decoded from them.

    `pixels` are (3, F, H, W) in -1 .. 1; `motion` pixel frames, 4n + 1, are handed over; `before` is what this window
    got.
    """
    if motion % 4 != 1 or not 1 <= motion <= pixels.shape[1]:
        raise RequestError(
            f"{motion} of {pixels.shape[1]} frames", field="motion", hint="must be 4n + 1 and at most the window"
        )
    reference = latents[:, :1] if before is None else before.reference
    last = latents[:, -(1 + (motion - 1) // 4) :]
    return Carry(reference.clone(), last.clone(), as_bytes(pixels[:, -motion:]))


def as_bytes(pixels: Tensor) -> Tensor:
    """Return pixels, -1 .. 1, as they are after 8 bits: values are cut off, not rounded, as in the public code."""
    levels = ((pixels.float() / 2 + 0.5).clamp(0, 1) * 255).floor()
    return levels / 127.5 - 1


def _check_frames(name: str, latents: Tensor, noise: Tensor, *, most: int) -> None:
    fits = latents.ndim == 4 and latents.shape[0] == noise.shape[0] and latents.shape[2:] == noise.shape[2:]
    if not fits or latents.shape[1] > most:
        raise RequestError(
            f"latents of shape {tuple(latents.shape)} beside noise of {tuple(noise.shape)}",
            field=name,
            hint=f"must have at most {most} frames of the same size",
        )
