"""Samplers: exact timesteps, exact Euler steps, fresh schedules and refused numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from engine.components import ExtendedSchedule, Sampler, StepTools
from engine.errors import ConfigError
from plugins.samplers.euler import Euler, EulerConfig
from plugins.samplers.heun import Heun, HeunConfig
from plugins.samplers.unipc import Unipc, UnipcConfig

BOTH = [(Euler, EulerConfig), (Unipc, UnipcConfig)]
ALL = [*BOTH, (Heun, HeunConfig)]


def sampler(kind: Any, config: Any, steps: int, shift: float = 7.0) -> Sampler:
    made: Sampler = kind(config(bundle="standard", steps=steps, shift=shift))
    return made


def walk(built: Sampler, steps: int, latents: torch.Tensor, velocity: Callable[[torch.Tensor, float], Any]) -> Any:
    """Go a whole schedule where `velocity` (latents, time) is the network's."""
    schedule = built.schedule()
    tools = StepTools(evaluate=velocity, noise=lambda: torch.zeros(()))
    assert len(schedule.timesteps) == steps + 1
    assert schedule.timesteps[-1] == 0
    for index in range(steps):
        first = velocity(latents, schedule.timesteps[index])
        if isinstance(schedule, ExtendedSchedule):
            latents = schedule.step_with(first, index, latents, tools)
        else:
            latents = schedule.step(first, index, latents)
    return latents


def recorded_schedules(recordings: Any) -> dict[tuple[int, float], torch.Tensor]:
    schedules = {}
    for name, timesteps in recordings.tensors("timesteps").items():
        steps, shift = (part.lstrip("stephif") for part in name.split("_"))
        schedules[int(steps), float(shift)] = timesteps
    return schedules


def test_euler_timesteps_equal_the_recordings_exactly(home_recordings: Any) -> None:
    schedules = recorded_schedules(home_recordings)

    assert len(schedules) == 6
    for (steps, shift), timesteps in schedules.items():
        assert torch.equal(torch.tensor(sampler(*BOTH[0], steps, shift).schedule().timesteps), timesteps)


@pytest.mark.parametrize(("steps", "shift"), [(4, 2.0), (8, 1.0), (40, 7.0)])
def test_unipc_leaves_out_the_last_time_of_one_step_more(steps: int, shift: float) -> None:
    timesteps = sampler(*BOTH[1], steps, shift).schedule().timesteps
    longer = sampler(*BOTH[0], steps + 1, shift).schedule().timesteps

    # The solver takes a logarithm of 1 - sigma and starts a millionth below 1.
    assert timesteps == pytest.approx([*longer[:-2], 0.0], abs=2e-3)


def test_euler_steps_straight_along_the_velocity() -> None:
    schedule: Any = sampler(*BOTH[0], 4).schedule()
    latents = torch.zeros(16, 1, 2, 2)
    velocity = torch.ones_like(latents)

    for index in range(4):
        stepped = schedule.step(velocity, index, latents)
        wanted = latents - (schedule.timesteps[index] - schedule.timesteps[index + 1]) / 1000
        torch.testing.assert_close(stepped, wanted, atol=1e-6, rtol=0)
        latents = stepped
    torch.testing.assert_close(latents, -torch.ones_like(latents), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("kind", "config"), ALL)
@pytest.mark.parametrize("steps", [1, 2, 5, 16])
def test_a_perfect_prediction_ends_at_the_data(kind: Any, config: Any, steps: int) -> None:
    generator = torch.Generator().manual_seed(0)
    noise, data = (torch.randn(16, 2, 2, 2, generator=generator) for _ in range(2))
    latents = walk(sampler(kind, config, steps), steps, noise, lambda *_: noise - data)

    assert latents.dtype == torch.float32
    torch.testing.assert_close(latents, data, atol=1e-4, rtol=0)


def test_solvers_of_second_order_are_nearer_than_euler_on_a_curved_path() -> None:
    calls = 0

    def velocity(latents: torch.Tensor, time: float) -> torch.Tensor:
        # Data of variance 1/4: the exact velocity at time s is known and so is the end of the path.
        nonlocal calls
        calls += 1
        s = time / 1000
        variance = (1 - s) ** 2 / 4 + s**2
        return latents * (s - (1 - s) / 4) / variance

    def error(kind: Any, config: Any, steps: int) -> tuple[float, int]:
        nonlocal calls
        calls = 0
        end = walk(sampler(kind, config, steps, 1.0), steps, torch.ones(1, 1, 1, 1), velocity)
        return abs(float(end) - 0.5), calls

    euler, _ = error(Euler, EulerConfig, 8)
    unipc, _ = error(Unipc, UnipcConfig, 8)
    assert unipc < euler / 10
    heun, evaluations = error(Heun, HeunConfig, 8)
    patient, same = error(Euler, EulerConfig, 15)
    assert same == evaluations
    assert heun < patient / 5


def test_heun_walks_over_the_grid_of_euler_and_says_what_it_evaluates() -> None:
    built = sampler(Heun, HeunConfig, 8)
    assert isinstance(built, Heun)
    assert built.evaluations() == (2, 2, 2, 2, 2, 2, 2, 1)
    assert sampler(Heun, HeunConfig, 1).evaluations() == (1,)  # type: ignore[attr-defined]
    wanted = sampler(Euler, EulerConfig, 8).schedule().timesteps
    assert built.schedule().timesteps == pytest.approx(wanted, abs=1e-3)


@pytest.mark.parametrize(("kind", "config"), ALL)
def test_every_schedule_starts_afresh(kind: Any, config: Any) -> None:
    built = sampler(kind, config, 3)
    ends = [walk(built, 3, torch.ones(16, 1, 2, 2), lambda latents, time: latents * time / 500) for _ in range(2)]

    assert torch.equal(*ends)


@pytest.mark.parametrize(("kind", "config"), ALL)
@pytest.mark.parametrize("steps", [0, -4, 1001])
def test_steps_out_of_range_are_named(kind: Any, config: Any, steps: int) -> None:
    with pytest.raises(ConfigError) as caught:
        sampler(kind, config, steps)

    assert caught.value.field == "sampler.steps"


@pytest.mark.parametrize(("kind", "config"), ALL)
@pytest.mark.parametrize("shift", [0.0, -1.0, float("nan")])
def test_a_shift_out_of_range_is_named(kind: Any, config: Any, shift: float) -> None:
    with pytest.raises(ConfigError) as caught:
        sampler(kind, config, 4, shift)

    assert caught.value.field == "sampler.shift"


@pytest.mark.parametrize("shift", [1.0, 2.0, 7.0])
def test_unipc_takes_the_steps_of_diffusers_bit_for_bit(shift: float) -> None:
    from diffusers import UniPCMultistepScheduler

    generator = torch.Generator().manual_seed(0)
    made: Any = UniPCMultistepScheduler
    for steps in (1, 2, 3, 8, 16):
        ours: Any = sampler(*BOTH[1], steps, shift).schedule()
        theirs = made(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)
        theirs.set_timesteps(steps)
        latents = expected = torch.randn(16, 2, 4, 4, generator=generator)
        for index, time in enumerate(theirs.timesteps):
            velocity = torch.randn(16, 2, 4, 4, generator=generator)
            latents = ours.step(velocity, index, latents)
            expected = theirs.step(velocity, time, expected, return_dict=False)[0]
            assert torch.equal(latents, expected), (steps, index)
