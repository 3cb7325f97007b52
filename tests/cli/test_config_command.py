"""`multitalk config` prints the composed config with where each value comes from, and nobody's secrets."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import Any

import pytest
import yaml

from engine.assembly.compose import compose
from engine.cli.main import main

SECRET = "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY"


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("S3_BUCKET", "BUCKET_ENDPOINT_URL", "AWS_REGION", "MODEL_PATH", "MULTITALK_OVERRIDES", "MULTITALK_RECIPE")
    for name in names:
        monkeypatch.delenv(name, raising=False)


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["config", *words]) == 0
    return capsys.readouterr().out


def as_json(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(printed(capsys, "--json", *words))
    return found


def test_the_command_prints_yaml_with_the_config_that_is_composed() -> None:
    words = ["sampler=turbo", "sampler.steps=7", "request.prompt='two: people # talk'"]
    done = subprocess.run(
        [sys.executable, "-m", "engine", "config", *words], capture_output=True, text=True, check=True, env=os.environ
    )
    config, found = compose(words), yaml.safe_load(done.stdout)
    assert found["sampler"] == vars(config.sampler)
    assert found["request"] == vars(config.request)
    assert found["model"]["resolutions"]["large"]["buckets"] == config.model.resolutions["large"].buckets
    assert "  steps: 7                                          # command line\n" in done.stdout
    assert done.stderr == ""


def test_each_value_names_its_origin(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("S3_BUCKET", "films")
    found = as_json(capsys, "recipe=card-24gb-720p", "sink=s3", "sampler.shift=3", "lora.extra=[{file: a.safetensors}]")
    origins = found["origins"]
    assert origins["video.crf"] == {"source": "schema"}
    assert origins["sampler.shift"] == {"source": "command line"}
    assert origins["lora.extra"] == {"source": "command line"}
    assert origins["model.adapter"] == {"source": "preset", "name": "model/multitalk"}
    assert origins["memory.tile"] == {"source": "preset", "name": "recipe/card-24gb-720p"}
    assert origins["device"] == {"source": "preset", "name": "recipe/card-24gb"}
    assert origins["sampler.bundle"] == {"source": "preset", "name": "sampler/standard"}
    assert origins["sink.bucket"]["environment"] == ["S3_BUCKET"]
    assert "environment" not in origins["sink.region"]
    assert found["config"]["sink"]["bucket"] == "films"


def test_a_reference_is_followed_to_the_value_it_leads_to(capsys: pytest.CaptureFixture[str]) -> None:
    steps = as_json(capsys, "sampler=turbo", "model.turbo.steps=3")["origins"]["sampler.steps"]
    assert steps == {"source": "schema", "reference": "${model.turbo.steps}", "then": {"source": "command line"}}
    shift = as_json(capsys, "resolution=large")["origins"]["sampler.shift"]
    assert shift["then"]["reference"] == "${model.resolutions.large.shift}"
    assert shift["then"]["then"] == {"source": "preset", "name": "model/tiny"}


def test_each_choice_names_what_made_it(capsys: pytest.CaptureFixture[str]) -> None:
    choices = as_json(capsys, "recipe=card-24gb", "sampler=turbo")["choices"]
    assert choices["sampler"] == {"choice": "turbo", "source": "command line"}
    assert choices["memory"] == {"choice": "group-offload", "source": "preset", "name": "recipe/card-24gb"}
    assert choices["sink"] == {"choice": "disk", "source": "default"}


def test_a_worker_s_config_names_the_environment_s_overrides(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MULTITALK_OVERRIDES", "sampler.steps=9 sink.limit=1000 entrypoint.grace=7")
    monkeypatch.setenv("MULTITALK_RECIPE", "card-48gb")
    found = as_json(capsys, "entrypoint=runpod", "entrypoint.grace=5")
    assert found["origins"]["sampler.steps"] == {"source": "MULTITALK_OVERRIDES"}
    assert found["origins"]["sink.limit"] == {"source": "MULTITALK_OVERRIDES"}
    assert found["origins"]["entrypoint.grace"] == {"source": "command line"}
    assert found["config"]["entrypoint"]["grace"] == 5
    assert found["origins"]["access.schemes"] == {"source": "entrypoint", "name": "runpod"}
    assert found["choices"]["recipe"]["source"] == "MULTITALK_RECIPE"
    assert found["choices"]["model"]["source"] == "entrypoint"
    # What is for a worker alone is refused elsewhere.
    assert main(["config"]) == 2
    assert "there is no 'sink.limit' in the config" in capsys.readouterr().err
    # Other variables stand in defaults.
    for name in ("MULTITALK_OVERRIDES", "MULTITALK_RECIPE"):
        monkeypatch.delenv(name)
    assert not {"MULTITALK_OVERRIDES", "MULTITALK_RECIPE"} & set(re.findall(r"MULTITALK_\w+", printed(capsys)))


@pytest.mark.parametrize("form", [[], ["--json"], ["--json", "entrypoint.api_key", "sink.folder"]])
def test_secrets_are_never_printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, form: list[str]
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    words = ["entrypoint=endpoint", "entrypoint.api_key=open-sesame", "sink.folder='x${entrypoint.api_key}'"]
    words += ["quant.file='${oc.env:AWS_SECRET_ACCESS_KEY}'", f"request.prompt=a{SECRET}b"]
    words += ["access.endpoint_url=https://me:hunter22@store.example/bucket?X-Amz-Signature=abcdef"]
    out = printed(capsys, *form, *words)
    for secret in (SECRET, "open-sesame", "hunter22", "abcdef"):
        assert secret not in out
    assert "[hidden]" in out


def test_texts_of_several_lines_and_control_characters_stay_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(capsys, "request.prompt='a\n\x1b[31mb\u202ec'", "request.audio=['a\nb', c]")
    assert "\x1b" not in out
    assert "\u202e" not in out
    found = yaml.safe_load(out)["request"]
    assert found["prompt"] == "a\n\x1b[31mb\u202ec"
    assert found["audio"] == ["a\nb", "c"]


def test_a_key_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(capsys, "video.crf", "video.crf=20")
    assert out.splitlines() == [
        "video.crf",
        "  meaning:  x264's constant rate factor, 0 (lossless) to 51 (smallest file).",
        "  type:     int",
        "  allowed:  0 to 51",
        "  default:  18",
        "  value:    20",
        "  from:     command line",
    ]


def test_a_key_of_components_that_are_not_chosen_is_explained_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(printed(capsys, "--json", "source.path"))
    assert [entry["choice"] for entry in found] == ["source=cached", "source=download", "source=volume"]
    (entry,) = json.loads(printed(capsys, "--json", "source.path", "source=volume", "source.path=/x"))
    assert (entry["choice"], entry["value"], entry["from"]) == ("source=volume", "/x", "command line")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["video.cfr"], "video.cfr: there is no key 'video.cfr' in the config; did you mean video.crf?"),
        (["video.crf=52"], "video.crf: 52 is out of range; 0 to 51"),
        (["sampler=nothing"], "sampler"),
        (["--yaml"], "command line: unknown flag --yaml"),
    ],
)
def test_what_is_wrong_is_one_line(capsys: pytest.CaptureFixture[str], words: list[str], line: str) -> None:
    assert main(["config", *words]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith(f"multitalk: error: {line}")
    assert told.err.count("\n") == 1


def test_the_help_names_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "\n  config " in capsys.readouterr().out
    assert main(["config", "--help"]) == 0
    assert "where each value comes from" in capsys.readouterr().out
