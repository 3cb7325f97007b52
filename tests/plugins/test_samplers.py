"""Samplers: exact timesteps, exact Euler steps, fresh schedules and refused numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from engine.components import Sampler
from engine.errors import ConfigError
from plugins.samplers.euler import Euler, EulerConfig
from plugins.samplers.unipc import Unipc, UnipcConfig

BOTH = [(Euler, EulerConfig), (Unipc, UnipcConfig)]


def sampler(kind: Any, config: Any, steps: int, shift: float = 7.0) -> Sampler:
    made: Sampler = kind(config(bundle="standard", steps=steps, shift=shift))
    return made


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
    schedule = sampler(*BOTH[0], 4).schedule()
    latents = torch.zeros(16, 1, 2, 2)
    velocity = torch.ones_like(latents)

    for index in range(4):
        stepped = schedule.step(velocity, index, latents)
        wanted = latents - (schedule.timesteps[index] - schedule.timesteps[index + 1]) / 1000
        torch.testing.assert_close(stepped, wanted, atol=1e-6, rtol=0)
        latents = stepped
    torch.testing.assert_close(latents, -torch.ones_like(latents), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("kind", "config"), BOTH)
@pytest.mark.parametrize("steps", [1, 2, 5, 16])
def test_a_perfect_prediction_ends_at_the_data(kind: Any, config: Any, steps: int) -> None:
    generator = torch.Generator().manual_seed(0)
    noise, data = (torch.randn(16, 2, 2, 2, generator=generator) for _ in range(2))
    schedule = sampler(kind, config, steps).schedule()
    latents = noise

    for index in range(steps):
        latents = schedule.step(noise - data, index, latents)

    assert len(schedule.timesteps) == steps + 1
    assert schedule.timesteps[-1] == 0
    assert latents.dtype == torch.float32
    torch.testing.assert_close(latents, data, atol=1e-4, rtol=0)


def test_unipc_is_nearer_than_euler_on_a_curved_path() -> None:
    def error(kind: Any, config: Any) -> float:
        # Data of variance 1/4: the exact velocity at time s is known and so is the end of the path.
        schedule = sampler(kind, config, 8, 1.0).schedule()
        latents = torch.ones(1, 1, 1, 1)
        for index in range(8):
            s = schedule.timesteps[index] / 1000
            variance = (1 - s) ** 2 / 4 + s**2
            latents = schedule.step(latents * (s - (1 - s) / 4) / variance, index, latents)
        return abs(float(latents) - 0.5)

    assert error(Unipc, UnipcConfig) < error(Euler, EulerConfig) / 10


@pytest.mark.parametrize(("kind", "config"), BOTH)
def test_every_schedule_starts_afresh(kind: Any, config: Any) -> None:
    built = sampler(kind, config, 3)
    ends = []
    for _ in range(2):
        schedule, latents = built.schedule(), torch.ones(16, 1, 2, 2)
        for index in range(3):
            latents = schedule.step(latents * (index + 1), index, latents)
        ends.append(latents)

    assert torch.equal(*ends)


@pytest.mark.parametrize(("kind", "config"), BOTH)
@pytest.mark.parametrize("steps", [0, -4, 1001])
def test_steps_out_of_range_are_named(kind: Any, config: Any, steps: int) -> None:
    with pytest.raises(ConfigError) as caught:
        sampler(kind, config, steps)

    assert caught.value.field == "sampler.steps"


@pytest.mark.parametrize(("kind", "config"), BOTH)
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
        ours = sampler(*BOTH[1], steps, shift).schedule()
        theirs = made(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)
        theirs.set_timesteps(steps)
        latents = expected = torch.randn(16, 2, 4, 4, generator=generator)
        for index, time in enumerate(theirs.timesteps):
            velocity = torch.randn(16, 2, 4, 4, generator=generator)
            latents = ours.step(velocity, index, latents)
            expected = theirs.step(velocity, time, expected, return_dict=False)[0]
            assert torch.equal(latents, expected), (steps, index)
