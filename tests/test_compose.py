"""Overrides become a typed config; what does not fit is one line that says what would."""

from __future__ import annotations

import pytest

from engine.compose import compose, compose_request
from engine.config import ApgConfig, TeaCacheConfig
from engine.errors import ConfigError, RequestError, UnknownComponent
from engine.registry import installed
from engine.settings import make_settings


def test_turbo_takes_its_values_from_the_chosen_model() -> None:
    tiny, real = compose(["sampler=turbo"]), compose(["sampler=turbo", "model=multitalk"])
    assert (tiny.sampler.steps, tiny.sampler.shift) == (tiny.model.turbo.steps, tiny.model.turbo.shift)
    assert (real.sampler.steps, real.sampler.shift) == (8, 2.0)
    assert (real.guidance.text_scale, real.guidance.audio_scale) == (1.0, 2.0)


def test_resolution_brings_its_shift_and_step_cache_coefficients() -> None:
    config = compose(["model=multitalk", "resolution=720p", "cache=teacache"])
    assert config.sampler.shift == 11.0
    assert isinstance(config.cache, TeaCacheConfig)
    assert config.cache.coefficients[0] == 8107.0546


def test_any_value_of_a_bundle_can_be_overridden_alone() -> None:
    config = compose(["sampler=turbo", "guidance=apg", "guidance.text_scale=2", "sampler.steps=6"])
    assert isinstance(config.guidance, ApgConfig)
    assert (config.sampler.steps, config.guidance.text_scale) == (6, 2.0)
    assert config.guidance.audio_scale == config.model.turbo.audio_scale


def test_default_resolution_is_the_models() -> None:
    assert compose([]).resolution == "small"
    assert compose(["model=infinitetalk"]).resolution == "480p"


def test_recipe_stands_after_the_groups_it_overrides() -> None:
    assert compose(["recipe=draft"]).sampler.bundle == "turbo"
    assert compose(["recipe=long"]).continuation.frames == 9


@pytest.mark.parametrize(
    ("words", "style", "instead"),
    [
        (["model=tiny"], "infinitetalk", None),
        (["model=tiny", "continuation.style=multitalk"], "multitalk", "continuation.style=infinitetalk"),
        (["model=multitalk"], "multitalk", "model=infinitetalk"),
        (["model=multitalk", "recipe=long"], "infinitetalk", None),
        (["model=infinitetalk"], "infinitetalk", None),
        (["model=infinitetalk", "continuation.style=multitalk"], "multitalk", "continuation.style=infinitetalk"),
    ],
)
def test_long_videos_keep_the_picture_or_the_plan_knows_how_far_the_style_carries(
    words: list[str], style: str, instead: str | None
) -> None:
    config = compose(words)
    assert config.continuation.style == style
    settings = make_settings(config, installed())
    assert (settings.holds and (settings.holds[0], settings.holds[2])) == (instead and (15.0, instead))


@pytest.mark.parametrize(
    ("override", "field", "hint"),
    [
        ("sampler=eulr", "sampler", "euler"),
        ("sink=nowhere", "sink", "disk"),
        ("resolution=999p", "resolution", "small, large"),
        ("modle=tiny", "modle", "model"),
        ("sampler.stepz=3", "sampler.stepz", "sampler.steps"),
        ("sampler.steps=many", "sampler.steps", "whole number"),
        ("guidance.text_scale=big", "guidance.text_scale", "a number"),
        ("+sampler.colour=red", "sampler.colour", "+"),
        ("sampler.steps=[1", "override", "key=value"),
    ],
)
def test_wrong_override_is_one_line_with_field_and_hint(override: str, field: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose([override])
    assert caught.value.field == field
    assert hint in caught.value.hint
    assert "\n" not in str(caught.value)


def test_unknown_component_lists_installed() -> None:
    with pytest.raises(UnknownComponent) as caught:
        compose(["sampler=eulr"])
    assert {"euler", "unipc", "standard", "turbo"} <= set(caught.value.known)
    assert "schema" not in caught.value.known


@pytest.mark.parametrize("override", ["sampler=turbo", "resolution=large", "guidance.text_scale=3.5", "cache=teacache"])
def test_request_may_override_what_is_its_own(override: str) -> None:
    assert compose_request([], [override]) != compose([])


@pytest.mark.parametrize(
    "override",
    [
        "sink=base64",
        "model=multitalk",
        "sampler.steps=${oc.env:HOME}",
        "sampler@x=turbo",
        "+sampler.x=1",
        "~sampler",
        "hydra.run.dir=/etc",
        "sampler.steps=1,2",
        "sampler.steps=range(1,3)",
        "sampler.steps=[1]",
        "guidance.text_scale={a: 1}",
        "sampler.name=unipc",
        "sampler.steps='${oc.env:HOME}'",
        "request.prompt=hello",
        "sampler/../sink=base64",
    ],
)
def test_request_may_not_override_the_rest(override: str) -> None:
    with pytest.raises(RequestError) as caught:
        compose_request([], [override])
    assert caught.value.field.startswith("overrides")


def test_request_overrides_come_after_the_boot_overrides() -> None:
    config = compose_request(["sampler.steps=3", "resolution=large"], ["sampler.steps=5"])
    assert (config.sampler.steps, config.resolution) == (5, "large")
