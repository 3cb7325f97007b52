"""Conditions and noise -> latents: the denoising loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from engine.components import CancelToken, ExtendedSchedule, Guidance, Sampler, StepCache, StepTools, evaluations_of
from engine.data import Conditions, Motion, Tally
from engine.errors import Cancelled, ConfigError
from engine.family import SharedPasses
from engine.network.step_caches import CountingCache, TimedCache
from engine.stages.hold_source import holding_source
from engine.stages.passes import guidance_of


def draw_noise(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draw normal noise, float32 on the CPU, so that a seed gives the same noise for every device."""
    return torch.randn(shape, generator=generator, device="cpu", dtype=torch.float32)


@torch.no_grad()
def denoise(
    transformer: Any,
    conditions: Conditions,
    noise: Tensor,
    *,
    sampler: Sampler,
    guidance: Guidance,
    cache: StepCache,
    generator: torch.Generator,
    on_step: Callable[[int, int], None] | None = None,
    look: Callable[[int, Tensor, Tensor, float], None] | None = None,
    cancel: CancelToken | None = None,
    motion_noise: Iterator[Tensor] | None = None,
    tally: Tally | None = None,
    batched: bool = False,
    shared: SharedPasses | None = None,
) -> Tensor:
    """Denoise `noise`, float32 (16, T, h, w), to latents of that shape and dtype on the conditions' device.

    Motion latents that are mixed with noise get fresh noise before the first step, after every step, and before each
    evaluation within a step except the first. It comes from `motion_noise`, or by default from `generator` (on the
    CPU). A schedule that asks for noise also draws from `generator`.

    `on_step(step, steps)` is called after each step, counted from 1, and `look(step, latents, velocity, time)` in the
    middle of it, with the latents at its start and the guided velocity there. `batched`: the passes of an evaluation
    are one forward of a batch; `shared`: other processes compute some of them. The forwards are added to `tally` at the
    end. Raises Cancelled between guidance passes and steps once
    `cancel` is set, and ConfigError if a step makes another number of evaluations than its sampler declares.
    """
    device = conditions.latents.device
    schedule = sampler.schedule()
    guidance.reset()
    hold = _hold(conditions.motion, generator, motion_noise, device)
    times = schedule.timesteps
    steps = len(times) - 1
    declared = evaluations_of(sampler, steps)
    hold = holding_source(hold, conditions.held, noise, device)
    latents = hold(noise.to(device, torch.float32), times[0])
    # Copied at once: a copy in each step would make the host wait for the step before.
    on_device = torch.tensor(times[:steps], dtype=torch.float32).to(device)
    moments = {time: on_device[index : index + 1] for index, time in enumerate(times[:steps])}
    evaluations = asked = 0
    current = guidance

    def evaluate(latents: Tensor, time: float) -> Tensor:
        nonlocal evaluations, asked
        moment = moments[time] if time in moments else torch.tensor([time], dtype=torch.float32).to(device)
        inputs = torch.cat([latents, conditions.latents])[None]
        predictions: dict[str, Tensor] = {}
        if isinstance(cache, TimedCache):
            cache.at(time)
        own = current.branches if shared is None else shared.own(current.branches)
        groups = [current.branches] if batched else [() if name is None else (name,) for name in own]
        for branches in groups:
            _check(cancel)
            if not branches:
                continue
            parts = [conditions.branches[branch] for branch in branches]
            with cache.branch("+".join(branches), evaluations):
                output = transformer(
                    hidden_states=inputs,
                    timestep=moment,
                    conditions=parts if len(parts) > 1 else parts[0],
                    return_dict=False,
                )[0].float()
            predictions |= zip(branches, output, strict=True)
        if shared is not None:
            predictions = shared.gather(predictions, current.branches)
        evaluations += 1
        asked += len(predictions)
        return current.combine(predictions)

    tools = StepTools(
        evaluate=lambda latents, time: evaluate(hold(latents, time), time),
        noise=lambda: _to_device(draw_noise(tuple(noise.shape), generator), device),
    )
    with cache.attach(transformer):
        for index in range(steps):
            before, current = evaluations, guidance_of(guidance, index, steps)
            velocity = evaluate(latents, times[index])
            if look is not None:
                look(index + 1, latents, velocity, times[index])
            if isinstance(schedule, ExtendedSchedule):
                stepped = schedule.step_with(velocity, index, latents, tools)
            else:
                stepped = schedule.step(velocity, index, latents)
            if evaluations - before != declared[index]:
                raise ConfigError(
                    f"step {index + 1} made {evaluations - before} evaluations of the network, "
                    f"its sampler declares {declared[index]}",
                    field="sampler",
                    hint="fix the sampler's plugin: each step must make as many as `evaluations` returns",
                )
            latents = hold(stepped, times[index + 1])
            if on_step is not None:
                on_step(index + 1, steps)
        if tally is not None:
            tally.asked += asked
            tally.skipped += cache.skipped if isinstance(cache, CountingCache) else 0
            # Each process counts its own passes only.
            tally.counted &= isinstance(cache, CountingCache) and (shared is None or not cache.skipped)
    _check(cancel)
    return latents


def _hold(
    motion: Motion | None, generator: torch.Generator, recorded: Iterator[Tensor] | None, device: torch.device
) -> Callable[[Tensor, float], Tensor]:
    """Return a function (latents, time) that puts the leading frames of `motion` into latents; time is 0 .. 1000."""
    if motion is None:
        return lambda latents, _time: latents
    clean = motion.latents.to(device, torch.float32)
    length = clean.shape[1]

    def hold(latents: Tensor, time: float) -> Tensor:
        leading = clean
        if not motion.clean:
            # Drawn even at time 0, where its weight is 0: the generator must advance as in the public implementation.
            fresh = draw_noise(tuple(clean.shape), generator) if recorded is None else next(recorded)
            sigma = time / 1000
            leading = (1 - sigma) * clean + sigma * _to_device(fresh, device)
        return torch.cat([leading, latents[:, length:]], dim=1)

    return hold


def _to_device(fresh: Tensor, device: torch.device) -> Tensor:
    if device.type == "cuda":
        # The host does not wait while pinned memory is copied.
        fresh = fresh.pin_memory()
    return fresh.to(device, non_blocking=True)


def _check(cancel: CancelToken | None) -> None:
    if cancel is not None and cancel.is_set():
        raise Cancelled("denoise")
