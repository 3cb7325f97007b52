"""Overrides become a typed config; what does not fit is one line that says what would."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import hydra
import pytest
from hydra.errors import HydraException
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from engine.assembly.compose import Composer, compose, compose_request
from engine.assembly.composition import Compositions, hydra_started
from engine.assembly.location import WeightsFinder
from engine.assembly.settings import make_plan_inputs
from engine.assembly.typed_overrides import readable
from engine.errors import ConfigError, RequestError, UnknownComponent
from engine.plugin.manager import installed
from plugins.caches.teacache import TeaCacheConfig
from plugins.guidance.apg import ApgConfig


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


@pytest.mark.parametrize(
    ("words", "suggested"),
    [
        (["sampler=unipc", "sampler.shfit=5"], "did you mean sampler.shift?"),
        (["guidance=apg", "guidance.momentom=0"], "did you mean guidance.momentum?"),
        (["sink=s3", "sink.buckt=films"], "did you mean sink.bucket?"),
        (["cache=teacache", "cache.tresholt=0.1"], "did you mean cache.threshold?"),
        (["model=multitalk", "resoluton=720p"], "did you mean resolution?"),
        # No choice has such a field: whatever is most like it, of all keys.
        (["sampler=unipc", "samplr.shift=5"], "did you mean sampler.shift"),
    ],
)
def test_a_mistyped_key_is_compared_with_those_of_what_was_chosen(words: list[str], suggested: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(words)
    assert caught.value.hint.startswith(suggested)


def test_a_mistyped_key_of_a_request_is_compared_with_those_of_the_engines_choices() -> None:
    with pytest.raises(RequestError) as caught:
        compose_request(["guidance=apg"], ["guidance.momentom=0"])
    assert caught.value.hint == "did you mean guidance.momentum?"


def test_a_field_of_a_component_that_was_not_chosen_is_suggested_with_that_component() -> None:
    with pytest.raises(ConfigError) as caught:
        compose(["guidance=cfg", "guidance.momentum=0"])
    assert caught.value.hint == "did you mean guidance.momentum (with guidance=apg)?"


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
    inputs = make_plan_inputs(config, installed(), WeightsFinder(installed()))
    assert (inputs.holds and (inputs.holds[0], inputs.holds[2])) == (instead and (15.0, instead))


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
        ("resume.keep=maybe", "resume.keep", "give true or false"),
        ("model.distilled.loras=[]", "model.distilled.loras", "choose a preset that has it"),
        ("model.distilled={solver:euler}", "model.distilled", "choose a preset that has it"),
        ("++model.distilled.solver=euler", "model.distilled.solver", "choose a preset that has it"),
        ("guidance.batched=maybe", "guidance.batched", "give true or false"),
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


@pytest.mark.parametrize(
    ("override", "place"),
    [
        ("lora.extra=${model.name}", "lora.extra"),
        ("lora.extra='\\${oc.env:HOME}'", "lora.extra"),
        ("model.turbo.loras=${model.name}", "model.turbo.loras"),
        ("access.schemes=${model.name}", "access.schemes"),
        ("lora=${model}", "lora"),
        ("model.turbo=${lora}", "model.turbo"),
    ],
)
def test_a_reference_to_something_of_another_shape_is_an_error_in_one_line(override: str, place: str) -> None:
    with pytest.raises(ConfigError, match=r" is not a (list|group)") as caught:
        compose(["model=tiny", override])
    assert caught.value.field == place
    assert "\n" not in str(caught.value)


def test_a_reference_to_something_of_the_same_shape_is_taken() -> None:
    config = compose(["model=tiny", "lora.extra=${model.turbo.loras}"])

    assert [one.file for one in config.lora.extra] == ["loras/turbo.safetensors"]


CHOICES = st.lists(
    st.sampled_from(
        [
            *(
                "sampler=turbo",
                "sampler=standard",
                "sampler=euler",
                "sampler=unipc",
                "guidance=apg",
                "guidance=standard",
            ),
            *("cache=teacache", "cache=none", "cache=firstblock", "resolution=large", "resolution=small"),
            *("sampler.steps=7", "sampler.steps=2", "sampler.shift=3.5", "guidance.text_scale=2", "sampler.steps=8.0"),
            *("guidance.audio_scale=1.5", "cache.threshold=0.3", "cache.warmup=1", "continuation.frames=9"),
            *("continuation.style=infinitetalk", "guidance.norm_threshold=10", "guidance.eta=0.5", "cache.interval=2"),
            *("sampler.stepz=3", "resolution=9000p", "sampler=eulr", "sampler.steps=many", "sink=base64", "model=tiny"),
            *("sampler.shift=数", "guidance.text_scale=null", "cache=x(y)", "sampler.name=euler", "sampler=null"),
        ]
    ),
    max_size=6,
)
BOOTS = ((), ("model=infinitetalk",), ("recipe=draft", "sampler.steps=5"), ("cache=teacache", "cache.threshold=0.25"))
KEPT = Compositions()


def outcome(make: Callable[[], DictConfig]) -> tuple[Any, ...]:
    try:
        composed = make()
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        return type(error), str(error)
    return OmegaConf.is_struct(composed), OmegaConf.to_container(composed)


def hydras(words: Sequence[str]) -> DictConfig:
    with hydra_started():
        return hydra.compose("config", list(words))


@settings(max_examples=3)
@example(boot=(), words=["guidance=apg", "cache=teacache", "resolution=large"])
@example(boot=("recipe=draft", "sampler.steps=5"), words=["sampler=turbo", "device=cpu"])
@example(boot=(), words=["access.schemes=[tape, data]", "sampler.steps=3", "+sampler.extra=1", "~recipe"])
@example(boot=(), words=["sampler.steps=3", "sampler.steps=2,4"])
@example(boot=(), words=["request.prompt=${device}", "device=null"])
@given(boot=st.sampled_from(BOOTS), words=CHOICES)
@pytest.mark.slow
def test_what_is_kept_is_what_hydra_composes(boot: tuple[str, ...], words: list[str]) -> None:
    lines = readable([*boot, *words])
    expected = outcome(lambda: hydras(lines))
    # The first time it composes and keeps, the second it takes what was kept.
    for _ in range(2):
        assert outcome(lambda: KEPT.compose(lines)) == expected


def test_configs_of_two_requests_share_nothing() -> None:
    composer = Composer([])
    for words in ([], ["sampler.steps=4"], ["cache=teacache"]):
        one, other = composer.request(words), composer.request(words)
        assert one == other
        one.sampler.steps = 99
        one.access.schemes.append("tape")
        one.model.turbo.loras.append("evil")  # type: ignore[arg-type]
        assert other == composer.request(words)
        assert "tape" not in composer.config.access.schemes


def test_a_bounded_number_of_choices_is_kept_and_none_that_does_not_exist() -> None:
    kept = Compositions()
    kept.MAX_CACHED = 2
    for words in (["cache=none"], ["cache=teacache"], ["cache=firstblock"], ["cache=teacache", "cache.threshold=0.4"]):
        kept.compose(words)
    assert list(kept.cached) == [("cache=firstblock",), ("cache=teacache",)]
    for word in ("resolution=x1", "cache=x1", "cache.x1=1"):
        with suppress(HydraException):
            kept.compose(["cache=teacache", word])
    assert list(kept.cached) == [("cache=firstblock",), ("cache=teacache",)]


def test_a_request_after_the_first_costs_a_tenth_of_composing_it() -> None:
    composer = Composer([])
    composer.request(["sampler=standard", "sampler.steps=3"])
    began = time.process_time()
    for steps in range(4, 14):
        composer.request(["sampler=standard", f"sampler.steps={steps}", f"guidance.text_scale={steps / 2}"])
    took = (time.process_time() - began) / 10
    # 20 ms where composing takes 160 ms: far from the 50 ms that a job may cost, so that a busy machine passes, too.
    assert took < 0.05


def test_composers_of_many_threads_do_not_mix() -> None:
    composer = Composer([])
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda steps: composer.request([f"sampler.steps={steps}"]).sampler.steps, range(2, 30)))
    assert found == list(range(2, 30))
