"""Guidance: formulas against recordings, which branches run, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from steering import make_guidance
from torch import Tensor

from engine.assembly.compose import compose
from engine.assembly.sampling import build_sampling
from engine.errors import ConfigError, UnknownComponent
from engine.plugin.manager import installed
from engine.stages.passes import GuidanceInterval


def predictions(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(16, 3, 4, 4, generator=generator) for name in ("cond", "drop_text", "drop_audio", "uncond")
    }


@pytest.mark.parametrize("name", ["cfg", "apg"])
@pytest.mark.parametrize("passes", [2, 3])
def test_guidance_equals_the_recording_over_steps(name: str, passes: int, home_recordings: Any) -> None:
    recorded = home_recordings.tensors("guidance")
    header = home_recordings.header("guidance")
    guidance = make_guidance(
        name,
        float(header["text_scale"]) if passes == 3 else 1.0,
        float(header[f"audio_scale{passes}"]),
        momentum=float(header["momentum"]),
        norm_threshold=float(header["norm_threshold"]),
        eta=0.0,
    )
    steps = sorted({key.partition(".")[0] for key in recorded})

    assert len(steps) == 3
    for step in steps:
        mixed = guidance.combine({branch: recorded[f"{step}.{branch}"] for branch in guidance.branches})
        # The recording is float32 of another order of operations.
        torch.testing.assert_close(mixed, recorded[f"{step}.{name}{passes}"], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("text", "audio", "wanted"),
    [
        (5.0, 4.0, ("cond", "drop_text", "uncond")),
        (1.0, 4.0, ("cond", "drop_audio")),
        (5.0, 1.0, ("cond", "drop_text")),
        (1.0, 1.0, ("cond",)),
        (0.0, 0.0, ("cond", "drop_text", "uncond")),
    ],
)
def test_a_scale_of_one_saves_its_forwards(text: float, audio: float, wanted: tuple[str, ...]) -> None:
    assert make_guidance("cfg", text, audio).branches == wanted
    assert make_guidance("apg", text, audio).branches == wanted


@pytest.mark.parametrize("name", ["cfg", "apg"])
@pytest.mark.parametrize(("text", "audio"), [(5.0, 1.0), (1.0, 1.0)])
def test_saved_forwards_do_not_change_the_formula(name: str, text: float, audio: float) -> None:
    given = predictions()
    # Just off 1, so that the whole formula runs.
    whole = make_guidance(name, text + 1e-6, audio + 1e-6)
    saving = make_guidance(name, text, audio)

    assert len(whole.branches) == 3 > len(saving.branches)
    torch.testing.assert_close(saving.combine(given), whole.combine(given), atol=1e-4, rtol=0)


def test_reset_forgets_the_momentum() -> None:
    guidance = make_guidance("apg", 5.0, 4.0)
    first = guidance.combine(predictions())
    second = guidance.combine(predictions())
    guidance.reset()

    assert not torch.equal(first, second)
    assert torch.equal(guidance.combine(predictions()), first)


def test_eta_one_without_clipping_and_momentum_is_plain_guidance() -> None:
    plain = make_guidance("cfg", 1.0, 3.0)
    projected = make_guidance("apg", 1.0, 3.0, momentum=0.0, norm_threshold=1e9, eta=1.0)

    torch.testing.assert_close(projected.combine(predictions()), plain.combine(predictions()), atol=1e-4, rtol=0)


def test_equal_predictions_are_left_alone_by_apg() -> None:
    same = dict.fromkeys(("cond", "drop_text", "uncond"), predictions()["cond"])

    assert torch.equal(make_guidance("apg", 5.0, 4.0).combine(same), same["cond"])


def test_unknown_guidance_lists_the_known() -> None:
    with pytest.raises(UnknownComponent, match="installed: apg, cfg"):
        compose(["guidance=cgf"])


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("guidance.text_scale", {"text_scale": float("nan")}),
        ("guidance.audio_scale", {"audio_scale": float("inf")}),
        ("guidance.momentum", {"momentum": 1.0}),
        ("guidance.norm_threshold", {"norm_threshold": 0.0}),
    ],
)
def test_numbers_that_cannot_be_meant_are_named(field: str, arguments: dict[str, float]) -> None:
    with pytest.raises(ConfigError) as caught:
        make_guidance("apg", **({"text_scale": 5.0, "audio_scale": 4.0} | arguments))

    assert caught.value.field == field


def test_counting_branches_needs_no_torch() -> None:
    code = (
        "import sys; from engine.assembly.compose import compose; from engine.assembly.sampling import build_sampling; "
        "from engine.plugin.manager import installed; "
        "choices = build_sampling(compose(['guidance=apg', 'guidance.text_scale=5', 'cache=teacache']), installed()); "
        "assert len(choices.guidance.branches) == 3; "
        "assert choices.cache.cost(branches=3, tokens=10, channels=8, blocks=4).kept == 4 * 10 * 8 * 4; "
        "sys.exit('torch' in sys.modules)"
    )

    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_guidance_outside_of_its_interval_is_one_forward_with_prompt_and_voices() -> None:
    config = compose(["guidance.text_scale=3", "guidance.until=0.5", "guidance.start=0.2", "sampler.steps=10"])
    sampling = build_sampling(config, installed())
    cond, others = torch.ones(2), torch.zeros(2)

    assert sampling.forwards(10) == (1, 1, 3, 3, 3, 1, 1, 1, 1, 1)
    assert isinstance(sampling.guidance, GuidanceInterval)
    outside = sampling.guidance.of_step(5, 10)
    assert torch.equal(outside.combine({"cond": cond}), cond)
    inside = sampling.guidance.of_step(2, 10).combine({"cond": cond, "drop_text": others, "uncond": others})
    assert torch.equal(inside, 3 * cond)


def test_a_whole_interval_changes_nothing() -> None:
    sampling = build_sampling(compose(["guidance=apg", "guidance.text_scale=3"]), installed())

    assert not isinstance(sampling.guidance, GuidanceInterval)


@pytest.mark.parametrize("name", ["cfg", "apg"])
@pytest.mark.parametrize(("text_scale", "passes"), [(1, 2), (3, 3)])
def test_a_plan_counts_the_forwards_of_an_interval_with_every_sampler(name: str, text_scale: int, passes: int) -> None:
    words = [f"guidance={name}", f"guidance.text_scale={text_scale}", "guidance.until=0.5", "sampler.steps=4"]

    for sampler, evaluations in (("standard", (1, 1, 1, 1)), ("heun", (2, 2, 2, 1))):
        config = compose([*words, f"sampler={sampler}"])
        sampling = build_sampling(config, installed())
        wanted = tuple(count * (passes if index < 2 else 1) for index, count in enumerate(evaluations))
        assert sampling.forwards(4) == wanted


def test_an_interval_that_ends_before_it_starts_is_named() -> None:
    with pytest.raises(ConfigError) as caught:
        build_sampling(compose(["guidance.start=0.5", "guidance.until=0.4"]), installed())

    assert caught.value.field == "guidance.until"
