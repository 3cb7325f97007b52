"""The walk of one window: its given frames, the steps of its noisy frames, and what it hands to the next window."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.cancel import check
from engine.components import CancelToken, ExtendedSchedule, Guidance, Schedule, StepTools
from engine.data import Tally
from engine.errors import ConfigError, RequestError
from engine.stages.passes import guidance_of
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
    schedule: Schedule | ExtendedSchedule,
    guidance: Guidance,
    *,
    evaluations: Sequence[int] | None = None,
    cached: bool = True,
    batched: bool = False,
    fresh: Callable[[], Tensor] | None = None,
    on_step: Callable[[int, int], None] | None = None,
    look: Callable[[int, Tensor, Tensor, float], None] | None = None,
    tally: Tally | None = None,
    cancel: CancelToken | None = None,
) -> Tensor:
    """Make the steps of `schedule`: return the noisy frames' clean latents, float32 (16, noisy, h, w).

    `conditions` has one entry for each pass of `guidance`. `cached`: keys and values of given frames are computed once
    for all steps and passes; the result is the same but for rounding. `batched`: the passes of an evaluation are one
    forward. Only noisy frames are stepped. `fresh` draws noise in their shape, for schedules that ask for it. `look`
    is called as `engine.family.Denoising` says, with the noisy frames only. `evaluations`: those of each step that the
    sampler declares; None: one in each. The forwards are added to `tally`. Raises Cancelled between passes and steps
    once `cancel` is set, and ConfigError if a step makes another number of evaluations.
    """
    device = next(iter(conditions.values())).context.device
    given, latents = start.given.to(device)[None], start.noise.to(device)
    guidance.reset()
    cache: KeyValueCache | None = None
    if cached and start.layout.given:
        cache = model.fill_cache(given, start.layout)
    times = schedule.timesteps
    steps = len(times) - 1
    # Copied at once: a copy in each step would make the host wait for the step before.
    on_device = torch.tensor(times[:steps], dtype=torch.float32).to(device)
    moments = {time: on_device[index : index + 1] for index, time in enumerate(times[:steps])}
    current = guidance_of(guidance, 0, steps)
    made = 0

    def evaluate(latents: Tensor, time: float) -> Tensor:
        """Return noise - data, the engine's sign: the network predicts data - noise."""
        nonlocal made
        moment = moments[time] if time in moments else torch.tensor([time], dtype=torch.float32).to(device)
        inputs = latents[None] if cache is not None else torch.cat([given, latents[None]], dim=2)
        predictions: dict[str, Tensor] = {}
        for names in [current.branches] if batched else [(name,) for name in current.branches]:
            check(cancel, "denoise")
            passes = [conditions[name] for name in names]
            (output,) = model(inputs, moment, passes, cache)
            predictions |= zip(names, output, strict=True)
        made += 1
        if tally is not None:
            tally.asked += len(predictions)
        return -current.combine(predictions)

    def refuse() -> Tensor:
        raise ConfigError("this sampler draws noise, and there is no generator", field="sampler")

    tools = StepTools(evaluate, fresh or refuse)
    for index in range(steps):
        before, current = made, guidance_of(guidance, index, steps)
        velocity = evaluate(latents, times[index])
        if look is not None:
            look(index + 1, latents, velocity, times[index])
        if isinstance(schedule, ExtendedSchedule):
            latents = schedule.step_with(velocity, index, latents, tools)
        else:
            latents = schedule.step(velocity, index, latents)
        declared = 1 if evaluations is None else evaluations[index]
        if made - before != declared:
            raise ConfigError(
                f"step {index + 1} made {made - before} evaluations of the network, its sampler declares {declared}",
                field="sampler",
                hint="fix the sampler's plugin: each step must make as many as `evaluations` returns",
            )
        if on_step is not None:
            on_step(index + 1, steps)
    check(cancel, "denoise")
    return latents


def finish(start: Start, denoised: Tensor) -> Tensor:
    """Return the latents of the whole window, (16, T, h, w), to be decoded: without the reference.

    In both versions the first frames of a continuation are the encoded frames of the window before.
    """
    given = start.encoded if start.encoded is not None else start.given
    return torch.cat([given.to(denoised), denoised], dim=1)


def hand_over(latents: Tensor, pixels: Tensor, motion: int, before: Carry | None) -> Carry:
    """Return what the next window needs of a finished one: `latents` of `finish`, and `pixels` decoded from them.

    `pixels` are (3, F, H, W) in -1 .. 1; `motion` pixel frames, 4n + 1, are handed over, or all of a shorter window,
    which no other window follows; `before` is what this window got.
    """
    if motion % 4 != 1 or motion < 1:
        raise RequestError(f"{motion} frames", field="motion", hint="must be 4n + 1")
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
