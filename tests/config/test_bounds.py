"""No number of a config or a request reaches the work unless it lies in the range that its key declares."""

from __future__ import annotations

import copy
import dataclasses
import math
import typing
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest

from engine.assembly.compose import compose, compose_request
from engine.config import Config
from engine.config.bounds import ANY, check_numbers
from engine.data import Request, Speaker
from engine.errors import ConfigError, RequestError
from engine.plugin.manager import installed
from engine.stages.read import check_request

#: What no key can mean, whichever it is.
ABSURD = ("nan", "inf", "-inf", "1e308", "9223372036854775808", "1" + "0" * 400)
#: Choices that bring keys of their own.
CHOICES = (
    *(
        "guidance=apg",
        "cache=teacache",
        "cache=firstblock",
        "cache=taylorseer",
        "cache=magcache",
        "cache=easycache",
        "sampler=unipc",
        "sampler=heun",
    ),
    "model=multitalk",
    *(
        "sink=s3",
        "sink=base64",
        "launcher=ray",
        "entrypoint=runpod",
        "entrypoint=batch",
        "entrypoint=endpoint",
        "entrypoint=ui",
    ),
)


@dataclass(frozen=True)
class Key:
    """A numeric key, with the choice of a group that has it."""

    name: str
    choice: str
    least: float
    most: float
    declared: bool


def numeric(hint: Any) -> bool:
    parts = {hint, *typing.get_args(hint)}
    return bool(parts & {int, float}) and typing.get_origin(hint) != typing.ClassVar


def walked(node: Any, prefix: str, choice: str) -> Iterator[Key]:
    hints = typing.get_type_hints(type(node))
    for field in dataclasses.fields(node):
        value, name = getattr(node, field.name), f"{prefix}{field.name}"
        if dataclasses.is_dataclass(value):
            # An entrypoint repeats other parts of the config.
            if prefix != "entrypoint." and name != "request":
                yield from walked(value, f"{name}.", choice)
        elif numeric(hints[field.name]) and not isinstance(value, list | dict):
            least, most = field.metadata.get("within", ANY)
            yield Key(name, choice, least, most, "within" in field.metadata)


@cache
def keys() -> tuple[Key, ...]:
    found: dict[str, Key] = {}
    for choice in ("", *CHOICES):
        for key in walked(chosen(choice), "", choice):
            found.setdefault(key.name, key)
    return tuple(found.values())


@cache
def chosen(choice: str) -> Config:
    return compose([choice] if choice else [])


def test_every_numeric_key_of_engine_and_plugins_declares_its_range() -> None:
    assert len(keys()) > 60
    assert [key.name for key in keys() if not key.declared] == ["entrypoint.num_frames"]


def test_a_number_that_no_key_can_mean_is_refused_by_every_key_in_one_line() -> None:
    # Through the whole composition for a whole number, a fraction and one that may be missing; the others below.
    for name in ("sampler.steps", "sampler.shift", "entrypoint.max_frames", "sink.limit"):
        key = next(key for key in keys() if key.name == name)
        for value in ABSURD:
            with pytest.raises(ConfigError) as caught:
                compose([*([key.choice] if key.choice else []), f"{key.name}={value}"])
            assert caught.value.field in (key.name, "override"), key
            assert str(caught.value).isprintable()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e308, 2**63, 10**400, -(2**63), -1, 0])
def test_the_walk_takes_a_number_only_within_its_keys_range(value: float) -> None:
    for key in keys():
        config = copy.deepcopy(chosen(key.choice))
        *parents, last = key.name.split(".")
        node: Any = config
        for parent in parents:
            node = getattr(node, parent)
        setattr(node, last, value)
        if key.least <= value <= key.most:
            check_numbers(config)
            continue
        with pytest.raises(ConfigError) as caught:
            check_numbers(config)
        assert (caught.value.field, caught.value.code) == (key.name, "out_of_range")
        assert caught.value.hint


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("model.resolutions.small.teacache=[nan]", "model.resolutions.small.teacache[0]"),
        ("model.resolutions.small.teacache=[1e308,1]", "model.resolutions.small.teacache[0]"),
        ("lora.extra=[{file:a.safetensors,scale:inf}]", "lora.extra[0].scale"),
    ],
)
def test_numbers_in_lists_and_tables_are_held_too(override: str, field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose([override])
    assert (caught.value.field, caught.value.code) == (field, "out_of_range")


def test_a_size_of_a_table_is_held_too() -> None:
    config = copy.deepcopy(chosen(""))
    config.model.resolutions["small"].buckets["0.10"] = [16, 100_000]
    with pytest.raises(ConfigError) as caught:
        check_numbers(config)
    assert caught.value.field == "model.resolutions.small.buckets.0.10[1]"


@pytest.mark.parametrize(
    "override",
    [
        *("guidance.text_scale=1e308", "guidance.text_scale=-1e308", "guidance.audio_scale=nan", "sampler.shift=inf"),
        *("sampler.shift=1e-308", "sampler.steps=1001", "cache=teacache cache.warmup=9223372036854775808"),
        *("cache=taylorseer cache.interval=1000000000", "guidance=apg guidance.norm_threshold=inf"),
        *("guidance=apg guidance.eta=nan", "cache=teacache cache.threshold=inf"),
    ],
)
def test_a_request_cannot_override_what_makes_a_video_of_no_numbers(override: str) -> None:
    with pytest.raises(RequestError) as caught:
        compose_request(["model=tiny"], override.split())
    assert caught.value.code == "out_of_range"
    assert override.split()[-1].partition("=")[0] in caught.value.field


@pytest.mark.parametrize("name", ["fps", "frames", "seed"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -2, 2**63, 10**400, 1e308])
def test_a_request_takes_no_such_number_either(name: str, value: Any) -> None:
    request = Request(prompt="a person talks", image="a.png", speakers=(Speaker("a.wav"),))
    if name == "frames" and isinstance(value, int) and value > 0:
        # How many are too many is the plan's to say.
        return
    with pytest.raises(RequestError) as caught:
        check_request(replace(request, **{name: value}))
    assert caught.value.field == f"request.{name}"


def test_every_component_that_is_installed_was_walked() -> None:
    registry = installed()
    named = {choice.partition("=")[2] for choice in CHOICES} | {
        "disk",
        "local",
        "generate",
        "euler",
        "renoise",
        *("longcat", "longcat-tail", "longcat-distilled"),
        "auto",
        "ahead",
    }
    for register in (registry.sinks, registry.launchers, registry.entrypoints, registry.samplers):
        for name in register.names():
            config = register.config(name)
            if config.__module__.partition(".")[0] != "plugins":
                # A plugin that is installed here beside ours.
                continue
            hints = typing.get_type_hints(config)
            has = [field.name for field in dataclasses.fields(config) if numeric(hints[field.name])]
            assert not has or name in named or name in ("standard", "turbo"), (name, has)
