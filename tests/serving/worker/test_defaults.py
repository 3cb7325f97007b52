"""What a worker boots with: the real model unless the tiny one was asked for, and what its environment says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from engine.assembly.compose import compose
from engine.assembly.location import locate_weights
from engine.config import Config
from engine.errors import ConfigError, SourceError
from engine.hub.manifest import read_manifest
from engine.plugin.manager import installed
from engine.serving.worker.defaults import QUANT, RECIPE, boot

ROOT = Path(__file__).parents[3]
ASKED = ("entrypoint=runpod",)


def booted(*words: str, **environment: str) -> Config:
    return compose(boot([*ASKED, *words], environment))


def test_the_default_is_the_real_model_on_a_card_of_24_gb() -> None:
    config = booted()
    assert (config.model.name, config.device) == ("multitalk", "cuda")
    assert (config.quant.name, config.memory.name) == ("int8-quanto", "group-offload")


def test_the_tiny_model_comes_by_asking_for_it_alone() -> None:
    for config in (booted("model=tiny"), booted(MULTITALK_OVERRIDES="model=tiny")):
        assert (config.model.name, config.device, config.quant.name) == ("tiny", "auto", "none")


def test_the_default_recipe_is_for_models_that_are_published_for_it() -> None:
    # A plugin's model, whose files nobody knows here, is left as its preset says.
    assert "recipe=card-24gb" in boot([*ASKED, "model=infinitetalk"], {})
    assert not any(word.startswith("recipe=") for word in boot([*ASKED, "model=acme"], {}))
    assert "recipe=card-24gb" in boot([*ASKED, "model=acme"], {"MULTITALK_RECIPE": "card-24gb"})


@pytest.mark.parametrize("model", sorted(path.stem for path in (ROOT / "conf" / "model").glob("*.yaml")))
def test_what_a_model_boots_with_reads_weights_that_exist(model: str) -> None:
    config = booted(f"model={model}")
    preset = read_manifest().preset_of(model, config.quant.name)
    assert config.model.packaged if preset is None else config.quant.name == preset.words["quant"]
    if preset is None:
        assert locate_weights(config, installed()).is_dir()
    else:
        assert preset.folder == config.model.folder


def test_the_default_recipe_reads_the_kind_that_it_is_chosen_by() -> None:
    assert compose([f"recipe={RECIPE}"]).quant.name == QUANT


def test_a_recipe_that_is_named_for_a_model_it_cannot_serve_is_one_clear_line() -> None:
    config = booted("device=cpu", MULTITALK_RECIPE="card-24gb", MULTITALK_OVERRIDES="model=tiny")
    with pytest.raises(SourceError) as caught:
        locate_weights(config, installed(), fetch=True)
    text = str(caught.value)
    assert "\n" not in text
    for word in ("'tiny'", "quant=int8-quanto", "MULTITALK_RECIPE=none"):
        assert word in text


def test_a_recipe_of_the_environment_takes_the_place_of_the_default() -> None:
    config = booted(MULTITALK_RECIPE="draft")
    assert (config.model.name, config.sampler.bundle, config.quant.name) == ("multitalk", "turbo", "none")
    assert booted("model=tiny", MULTITALK_RECIPE="draft").sampler.bundle == "turbo"


def test_overrides_of_the_environment_are_quoted_as_in_a_shell() -> None:
    config = booted(MULTITALK_OVERRIDES="model=tiny 'model.negative_prompt=\"a still, a blur\"' sampler.steps=7")
    assert (config.model.negative_prompt, config.sampler.steps) == ("a still, a blur", 7)


def test_the_command_line_wins_over_the_environment_and_both_over_the_default() -> None:
    config = booted("model=tiny", "sampler.steps=9", MULTITALK_OVERRIDES="model=infinitetalk sampler.steps=7")
    assert (config.model.name, config.sampler.steps) == ("tiny", 9)


@pytest.mark.parametrize("variable", ["S3_BUCKET", "BUCKET_ENDPOINT_URL"])
def test_a_bucket_that_is_configured_takes_the_videos(variable: str) -> None:
    overrides = boot([*ASKED, "model=tiny"], {variable: "https://films.s3.example.com"})
    assert "sink=s3" in overrides
    assert compose(overrides).sink.name == "s3"


def test_without_a_bucket_the_answer_carries_the_video_within_its_limit() -> None:
    sink = booted("model=tiny", "entrypoint.answer_bytes=5000").sink
    assert (sink.name, sink.limit) == ("base64", 5000)  # type: ignore[attr-defined]


def test_a_sink_that_is_named_stays_as_it_is() -> None:
    assert booted("model=tiny", "sink=disk", S3_BUCKET="films").sink.name == "disk"


def test_jobs_name_no_paths_unless_it_is_allowed() -> None:
    assert booted("model=tiny").access.schemes == ["data", "http", "https", "s3"]
    assert booted("model=tiny", "access.schemes=[path]").access.schemes == ["path"]


@pytest.mark.parametrize(
    ("text", "what"), [("model='tiny", "cannot be split into overrides"), ("model", "'model' is not an override")]
)
def test_overrides_that_cannot_be_read_are_one_error(text: str, what: str) -> None:
    with pytest.raises(ConfigError, match=rf"MULTITALK_OVERRIDES: .*{what}"):
        booted(MULTITALK_OVERRIDES=text)


def test_overrides_of_the_environment_are_those_of_every_entrypoint(monkeypatch: pytest.MonkeyPatch) -> None:
    from engine.cli import run
    from engine.cli.main import main

    seen: list[list[str]] = []

    def launched(overrides: Sequence[str]) -> int:
        seen.append(list(overrides))
        return 0

    monkeypatch.setattr(run, "launch", launched)
    monkeypatch.setenv("MULTITALK_OVERRIDES", "sampler.steps=7")
    assert main(["generate", "seed=1"]) == 0
    assert main(["runpod", "model=tiny"]) == 0
    assert "sampler.steps=7" in seen[0]
    assert seen[1][-3:] == ["sampler.steps=7", "entrypoint=runpod", "model=tiny"]


def test_the_default_recipe_can_be_left_out() -> None:
    config = booted("recipe=none")
    assert (config.model.name, config.device, config.quant.name) == ("multitalk", "auto", "none")
    assert booted(MULTITALK_RECIPE="none") == booted("recipe=none")


def test_a_worker_boots_with_the_length_of_the_voices_as_its_default() -> None:
    from engine.assembly.compose import compose
    from engine.serving.jobs.defaults import input_defaults
    from plugins.entrypoints.runpod import Runpod, RunpodConfig

    environment = {"MULTITALK_OVERRIDES": "model=tiny entrypoint.num_frames=auto entrypoint.max_seconds=60"}
    config = compose(["entrypoint=runpod", *boot([], environment)]).entrypoint
    assert isinstance(config, RunpodConfig)
    terms = Runpod(config)._terms
    assert input_defaults(terms.limits, terms.job_defaults)["num_frames"] == "auto"
    assert "fps" not in input_defaults(terms.limits, terms.job_defaults)
    assert terms.limits.seconds == 60
