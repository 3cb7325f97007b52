"""Every key of the config is documented, checked, and changes something."""

from __future__ import annotations

import ast
import re
from copy import deepcopy
from dataclasses import asdict, fields
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
from key_values import concrete, leaves, other, override
from omegaconf import DictConfig, OmegaConf

from engine.assembly.compose import compose, translated, typed
from engine.assembly.composition import compositions
from engine.assembly.typed_overrides import parse
from engine.cli.config_page import document
from engine.config import Config
from engine.config_keys.meanings import meanings
from engine.config_keys.reference import Key, choices_of, keys, provider_of
from engine.errors import ConfigError
from engine.plugin.manager import installed
from engine.serving.endpoint.limits import EndpointLimits

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "config.md").read_text("utf-8")
#: Keys that have a value of their own.
VALUES = [key for key in keys() if not key.group]


def name_of(key: Key) -> str:
    return f"{key.name} ({key.choice})" if key.choice else key.name


each_key = pytest.mark.parametrize("key", VALUES, ids=name_of)


def test_the_page_is_what_the_schema_says() -> None:
    assert document() == PAGE, "run: python -m engine.cli.config_page > docs/config.md"


def test_the_tables_of_the_page_are_whole() -> None:
    for table in re.findall(r"(?:^\|.*\n)+", PAGE, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}) == 1


@pytest.mark.parametrize("key", keys(), ids=name_of)
def test_every_key_has_a_meaning(key: Key) -> None:
    assert len(key.meaning.split()) >= 2, "write a comment `#: ...` above the field, or `help` in its metadata"


@each_key
def test_every_key_stands_in_the_page_with_its_default(key: Key) -> None:
    rows = [row for row in PAGE.splitlines() if row.startswith(f"| `{key.name}` |")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]
    assert [key.default_text, key.allowed] in [cell[2:4] for cell in cells]


def test_a_meaning_is_read_from_a_comment_of_several_lines_and_from_a_base() -> None:
    from plugins.sinks.s3 import S3Config
    from plugins.sources.volume import VolumeConfig

    assert meanings(S3Config)["checksum"].count(". ") == 2
    assert meanings(VolumeConfig)["path"] == "The folder, with one sub-folder per model."


@cache
def by_choice(choice: str) -> DictConfig:
    return compositions().compose(choice.split())


def composed(key: Key, word: str) -> Config:
    """Return the config with one key changed. Hydra merges a value so, too; to ask it each time takes minutes."""
    config = deepcopy(by_choice(choice_for(key)))
    override = parse(word)
    assert override is not None
    value = override.value()
    if key.type.startswith("table") and isinstance(value, dict):
        # Its keys are presets' to write: Hydra's grammar has no texts such as "1.00" for them.
        value = {"1.00": next(iter(value.values()))}
    with translated():
        OmegaConf.update(config, override.key_or_group, value, merge=True)
        return typed(config)


def choice_for(key: Key) -> str:
    if key.name.endswith((".teacache", ".magcache")):
        return f"cache={key.name.rpartition('.')[2]}"
    if key.name.startswith("model.distilled."):
        return "model=multitalk sampler=distilled"
    if key.name == "model.defaults_of":
        return "entrypoint=batch"
    return "sampler=turbo" if key.name.startswith("model.turbo.") else key.choice


def refused(key: Key, value: str) -> ConfigError:
    word = override(key, value)
    # What is within a list gets its place by the words, not by the merge.
    attempt = (
        partial(compose, [*(choice_for(key).split() if "distilled" in key.name else ()), word])
        if "[]." in key.name
        else partial(composed, key, word)
    )
    with pytest.raises(ConfigError) as caught:
        attempt()
    assert str(caught.value).isprintable()
    return caught.value


def names(error: ConfigError, key: Key) -> bool:
    """Say whether an error's field is the key; of a key in a list, that place or the whole list."""
    wanted = concrete(key)
    return error.field in {wanted, wanted.replace("[]", "[0]"), wanted.partition("[]")[0]}


@each_key
def test_every_key_refuses_another_type_in_one_line_that_names_it(key: Key) -> None:
    wrong = "[1]" if "text" in key.type.split(" | ") else "abc"
    assert names(refused(key, wrong), key)


#: Keys whose numbers the request's own check refuses (engine.stages.read, engine.stages.plan), since a request need
#: not come from a config; tests/config/test_bounds.py and tests/stages/test_plan.py hold them to that.
OF_REQUESTS = ("request.frames", "request.fps", "request.seed")
RANGES = [key for key in VALUES if key.within and key.name not in OF_REQUESTS]


@pytest.mark.parametrize("key", RANGES, ids=name_of)
def test_every_key_refuses_a_number_out_of_its_range_in_one_line_that_names_it(key: Key) -> None:
    assert key.within is not None
    for value in (key.within[0] - 1, key.within[1] * 2 + 1):
        text = str(int(value)) if float(value).is_integer() else repr(value)
        text = f"{{a:[{text},64]}}" if key.type.startswith("table") else text
        error = refused(key, f"[{text}]" if key.type.startswith("list") else text)
        assert error.code == "out_of_range"
        assert (error.field or "").startswith(concrete(key).partition("[]")[0])


def test_every_number_has_a_range_and_the_request_is_the_only_exception() -> None:
    numbers = [key for key in VALUES if {"int", "float"} & set(re.findall(r"\w+", key.type))]
    # Flags of the command line, checked with a job's values: engine.serving.jobs.defaults, engine.stages.read.
    undeclared = {key.name for key in numbers if not key.within}
    assert undeclared == {"entrypoint.num_frames", "request.people"}
    assert len(RANGES) > 60


WORDS = [key for key in VALUES if key.words and not key.name.startswith("request.")]


@pytest.mark.parametrize("key", WORDS, ids=name_of)
def test_every_key_of_words_refuses_another_word_in_one_line_that_names_it(key: Key) -> None:
    error = refused(key, "unheard-of")
    assert names(error, key)
    assert all(word in (error.hint or "") for word in key.words)


@cache
def before(choice: str) -> dict[str, Any]:
    return dict(leaves(asdict(compose(choice.split()))))


def test_a_wrong_value_is_named_through_the_whole_composition_too() -> None:
    for word in ("sampler.steps=abc", "sink.mkdir=7.5", "video.crf=52", "sampler.bundle=unheard-of", "device=tpu"):
        with pytest.raises(ConfigError) as caught:
            compose([word])
        assert caught.value.field == word.partition("=")[0]
        assert str(caught.value).isprintable()


@cache
def changed(key: Key) -> set[str]:
    """Return the keys of the composed config that another value of `key` changes."""
    then = before(choice_for(key))
    now = dict(leaves(asdict(composed(key, override(key, other(key, then.get(concrete(key))))))))
    return {name for name in now.keys() | then.keys() if now.get(name, ...) != then.get(name, ...)}


@each_key
def test_every_key_can_be_changed(key: Key) -> None:
    assert any(name == concrete(key).partition("[]")[0] or name.startswith(concrete(key)) for name in changed(key))


@cache
def accesses(root: str) -> frozenset[tuple[str, str]]:
    """Return (owner, attribute) of each attribute that code below `root` reads: `config.video.crf` is (video, crf)."""
    found = set()
    path = ROOT / root
    for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                owner = getattr(node.value, "attr", getattr(node.value, "id", ""))
                found.add((owner, node.attr))
    return frozenset(found)


#: Names that the code gives to a group elsewhere.
ALIASES = {"resolutions": ("table",), "loras": ("lora", "adapter"), "extra": ("lora", "adapter"), "": ("config",)}
#: Folders whose components read what the config of their kind has in common as `config.KEY`.
SHARED = {"sampler": "plugins/samplers", "guidance": "plugins/guidance"}
#: Makes the terms of jobs of what entrypoints that do jobs have in common, for those that ask for them.
JOBS_CONFIG = "engine/serving/worker/limits.py"
#: The base class of quantisers of 8-bit products, which reads what their configs have in common.
DYNAMIC_QUANTISER = "engine/loading/dynamic_quantiser.py"
#: Keys that code reads by another name than that of their group: key -> file, owner.
OTHERWISE = {
    "parallel.local_rank": ("engine/runtime/parallel.py", "config"),
    # Copied by name into the endpoint's Limits.
    **{f"entrypoint.{field.name}": ("engine/serving/endpoint", "limits") for field in fields(EndpointLimits)},
}


def is_read(key: Key) -> bool:
    """Say whether code uses the value of a key, under the name of its group or of a component's config."""
    group, _, last = key.name.replace("[]", "").replace(".NAME", "").rpartition(".")
    if key.name in OTHERWISE and key.choice in ("", "entrypoint=endpoint"):
        file, owner = OTHERWISE[key.name]
        return bool({(owner, last), (f"_{owner}", last)} & accesses(file))
    if key.choice:
        file = provider_of(*key.choice.split("=")).replace(".", "/") + ".py"
        if group == "family":
            # Any module of the family's package.
            return any((owner, last) in accesses(file.rpartition("/")[0]) for owner in ("config", "self", "settings"))
        if group == "entrypoint" and ("self", last) in accesses(JOBS_CONFIG) and ("config", "terms") in accesses(file):
            return True
        if group == "quant" and ("self", last) in accesses("engine/config/__init__.py"):
            # `DynamicQuantConfig.form` is made of what those quantisations have in common.
            return True
        if group == "quant" and ("config", last) in accesses(DYNAMIC_QUANTISER):
            return True
        return bool({(owner, last) for owner in ("config", "self", "_config")} & accesses(file))
    owner = group.rpartition(".")[2]
    if last == "name" and owner in {register.group for register in installed().registers}:
        return ("config", "name") in accesses("engine/plugin/register.py")
    if owner in SHARED and ("config", last) in accesses(SHARED[owner]):
        return True
    return any((name, last) in accesses("engine") for name in (owner, *ALIASES.get(owner, ())))


@each_key
def test_every_key_is_used(key: Key) -> None:
    """A key changes another key that refers to it, or code reads it."""
    passed_on = {name for name in changed(key) if not name.startswith(concrete(key).partition("[]")[0])}
    assert passed_on or is_read(key)


def test_the_page_has_every_component() -> None:
    for group in (
        "sink",
        "source",
        "sampler",
        "entrypoint",
        "launcher",
        "reader",
        "attention",
        "cache",
        "guidance",
        "regions",
    ):
        for name in choices_of(group):
            # A plugin that is installed here beside ours has no row.
            if provider_of(group, name).partition(".")[0] in ("plugins", "engine"):
                assert f"| `{name}`" in PAGE
