"""The denoising loop: given frames, noise, cancelling and progress."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from ancestral import Ancestral, AncestralConfig
from crossings import Crossings
from steering import make_cache, make_guidance
from tiny_folder import SIZES, build_transformer
from torch import Tensor

from engine.components import Sampler
from engine.data import Conditions, Motion
from engine.errors import Cancelled, ConfigError
from engine.stages.denoise import denoise, draw_noise
from plugins.samplers.euler import Euler, EulerConfig
from plugins.samplers.heun import Heun, HeunConfig
from plugins.samplers.unipc import Unipc, UnipcConfig

SHAPE = (3, 4, 4)
STEPS = 3


@pytest.fixture(scope="module")
def transformer() -> Any:
    return build_transformer()


@pytest.fixture(scope="module")
def branches(transformer: Any) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, SIZES["image_tokens"], SIZES["image_dim"], generator=generator)
    with torch.no_grad():
        return {
            name: transformer.embed_conditions(SHAPE, torch.randn(1, 4, SIZES["text_dim"], generator=generator), image)
            for name in ("cond", "drop_text", "uncond")
        }


class After(threading.Event):
    """Set once it was asked `times` times."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.left = times

    def is_set(self) -> bool:
        self.left -= 1
        return self.left < 0


class Watch:
    """Keeps the noisy latents of every forward."""

    def __init__(self, transformer: Any) -> None:
        self.fed: list[Tensor] = []
        self.handle = transformer.register_forward_pre_hook(self._keep, with_kwargs=True)

    def _keep(self, _module: Any, _args: Any, given: dict[str, Any]) -> None:
        self.fed.append(given["hidden_states"][0, :16].clone())


def euler() -> Sampler:
    return Euler(EulerConfig(bundle="standard", steps=STEPS, shift=3.0))


def unipc() -> Sampler:
    return Unipc(UnipcConfig(bundle="standard", steps=STEPS, shift=3.0))


def heun() -> Sampler:
    return Heun(HeunConfig(bundle="standard", steps=STEPS, shift=3.0))


def ancestral() -> Sampler:
    return Ancestral(AncestralConfig(bundle="standard", steps=STEPS, shift=3.0))


class Forgetful(Heun):
    """Says of itself that it makes one evaluation a step."""

    def evaluations(self) -> Sequence[int]:
        return (1,) * self.steps


def run(transformer: Any, branches: dict[str, Any], motion: Motion | None = None, seed: int = 1, **more: Any) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = draw_noise((16, *SHAPE), generator)
    conditions = Conditions(torch.zeros(20, *SHAPE), branches, motion)
    given: dict[str, Any] = {"generator": generator, "sampler": euler()} | more
    return denoise(
        transformer,
        conditions,
        noise,
        guidance=make_guidance("cfg", 5.0, 4.0),
        cache=make_cache("none"),
        **given,
    )


@pytest.fixture
def watch(transformer: Any) -> Any:
    watching = Watch(transformer)
    yield watching
    watching.handle.remove()


MOTION = torch.full((16, 2, 4, 4), 3.0)


@pytest.mark.parametrize("sampler", [euler, unipc])
def test_clean_motion_is_there_at_every_forward_and_at_the_end(
    sampler: Callable[[], Sampler], transformer: Any, branches: dict[str, Any], watch: Watch
) -> None:
    latents = run(transformer, branches, Motion(MOTION, clean=True), sampler=sampler())

    assert len(watch.fed) == 3 * STEPS
    for fed in [*watch.fed, latents]:
        assert torch.equal(fed[:, :2], MOTION)
        assert not torch.equal(fed[:, 2:], torch.full_like(fed[:, 2:], 3.0))


def test_mixed_motion_carries_fresh_noise_of_its_step_and_ends_clean(
    transformer: Any, branches: dict[str, Any], watch: Watch
) -> None:
    latents = run(transformer, branches, Motion(MOTION, clean=False))
    generator = torch.Generator().manual_seed(1)
    draw_noise((16, *SHAPE), generator)
    times = euler().schedule().timesteps

    for step in range(STEPS):
        sigma = times[step] / 1000
        wanted = (1 - sigma) * MOTION + sigma * draw_noise((16, 2, 4, 4), generator)
        for fed in watch.fed[3 * step : 3 * step + 3]:
            torch.testing.assert_close(fed[:, :2], wanted, atol=1e-6, rtol=0)
    assert torch.equal(latents[:, :2], MOTION)


def test_the_generator_alone_decides_and_the_global_one_is_left_alone(
    transformer: Any, branches: dict[str, Any]
) -> None:
    before = torch.get_rng_state()
    motion = Motion(MOTION, clean=False)
    first, again, other = (run(transformer, branches, motion, seed=seed) for seed in (1, 1, 2))

    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_mixed_motion_advances_the_generator_by_one_draw_more_than_steps(
    transformer: Any, branches: dict[str, Any]
) -> None:
    generator, twin = (torch.Generator().manual_seed(5) for _ in range(2))
    run(transformer, branches, Motion(MOTION, clean=False), generator=generator)
    for _ in range(STEPS + 1):
        draw_noise(tuple(MOTION.shape), twin)

    assert torch.equal(generator.get_state(), twin.get_state())


def test_the_result_is_float32_without_a_graph(transformer: Any, branches: dict[str, Any]) -> None:
    latents = run(transformer, branches)

    assert latents.shape == (16, *SHAPE)
    assert latents.dtype == torch.float32
    assert not latents.requires_grad


def test_every_step_is_told(transformer: Any, branches: dict[str, Any]) -> None:
    told: list[tuple[int, int]] = []
    run(transformer, branches, on_step=lambda *step: told.append(step))

    assert told == [(1, 3), (2, 3), (3, 3)]


def test_a_second_evaluation_is_guided_and_holds_the_motion_frames(
    transformer: Any, branches: dict[str, Any], watch: Watch
) -> None:
    told: list[tuple[int, int]] = []
    run(transformer, branches, Motion(MOTION, clean=True), sampler=heun(), on_step=lambda *step: told.append(step))

    assert len(watch.fed) == 3 * (2 + 2 + 1)
    assert all(torch.equal(fed[:, :2], MOTION) for fed in watch.fed)
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_an_ancestral_sampler_draws_from_the_request_s_own_generator(
    transformer: Any, branches: dict[str, Any]
) -> None:
    before = torch.get_rng_state()
    first, again, other = (run(transformer, branches, sampler=ancestral(), seed=seed) for seed in (1, 1, 2))
    generator, twin = (torch.Generator().manual_seed(5) for _ in range(2))
    run(transformer, branches, sampler=ancestral(), generator=generator)
    for _ in range(STEPS):
        draw_noise((16, *SHAPE), twin)

    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(generator.get_state(), twin.get_state())


def test_a_step_that_makes_another_number_of_evaluations_than_its_sampler_says_ends_the_loop(
    transformer: Any, branches: dict[str, Any], watch: Watch
) -> None:
    sampler = Forgetful(HeunConfig(bundle="standard", steps=STEPS, shift=3.0))
    with pytest.raises(ConfigError, match="step 1 made 2 evaluations of the network, its sampler declares 1"):
        run(transformer, branches, sampler=sampler)

    assert len(watch.fed) == 2 * 3


@pytest.mark.parametrize("forwards", [0, 1, 2, 3, 7])
def test_cancel_is_seen_before_every_guidance_pass(
    forwards: int, transformer: Any, branches: dict[str, Any], watch: Watch
) -> None:
    with pytest.raises(Cancelled, match="denoise"):
        run(transformer, branches, cancel=After(forwards))

    assert len(watch.fed) == forwards


def test_cancel_during_the_last_forward_is_not_lost(transformer: Any, branches: dict[str, Any]) -> None:
    with pytest.raises(Cancelled):
        run(transformer, branches, cancel=After(3 * STEPS))


def test_an_error_in_a_callback_ends_the_loop(transformer: Any, branches: dict[str, Any], watch: Watch) -> None:
    def stop(step: int, steps: int) -> None:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        run(transformer, branches, on_step=stop)

    assert len(watch.fed) == 3


@pytest.mark.parametrize(
    ("kind", "config", "guiding"),
    [
        (Euler, EulerConfig, "cfg"),
        (Unipc, UnipcConfig, "apg"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                (Euler, EulerConfig, "apg"),
                (Unipc, UnipcConfig, "cfg"),
                (Heun, HeunConfig, "cfg"),
                (Heun, HeunConfig, "apg"),
            )
        ),
    ],
)
def test_steps_bring_nothing_to_the_device_and_read_nothing_from_it(kind: Any, config: Any, guiding: str) -> None:
    transformer = build_transformer().to("meta")
    image = torch.zeros(1, SIZES["image_tokens"], SIZES["image_dim"], device="meta")
    embedded = transformer.embed_conditions(SHAPE, torch.zeros(1, 4, SIZES["text_dim"], device="meta"), image)
    guidance = make_guidance(guiding, 5.0, 4.0)
    conditions = Conditions(torch.zeros(20, *SHAPE, device="meta"), dict.fromkeys(guidance.branches, embedded), None)

    with Crossings() as crossings:
        denoise(
            transformer,
            conditions,
            torch.zeros(16, *SHAPE),
            # Three: each sampler's first, middle and last step.
            sampler=kind(config(bundle="standard", steps=3, shift=5.0)),
            guidance=guidance,
            cache=make_cache("none"),
            generator=torch.Generator(),
        )

    # The noise and the times: nothing for a step.
    assert len(crossings.seen) == 2
