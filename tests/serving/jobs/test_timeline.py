"""Prompts and pictures by time in jobs, files and flags: the same entries, and a bad one is refused by its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine.cli.parser import TIMED, entrypoint_parser, read_entrypoint
from engine.data import Cue, Request
from engine.errors import ConfigError, RequestError
from engine.serving.jobs.job import caller_field, parse_job
from engine.serving.jobs.timeline import parse_timeline, plain_timeline, read_timeline
from plugins.entrypoints.generate import GenerateConfig

GOOD = {"reference_image": "a.png", "audio_1": "a.wav", "prompt": "she talks"}
PROMPTS = [{"from": 0, "text": "she talks"}, {"from_frame": 80, "text": "she smiles"}]
CUES = (Cue("she talks", 0.0), Cue("she smiles", frame=80))


def request(*, without: str = "prompt", folder: Path | None = None, **fields: Any) -> Request:
    inputs = {key: value for key, value in {**GOOD, **fields}.items() if key != without}
    asked = parse_job({"input": inputs}, folder=folder).request
    assert asked is not None
    return asked


def refused(**fields: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        request(**fields)
    return caught.value


def test_entries_of_a_job_arrive_in_the_request() -> None:
    asked = request(prompts=PROMPTS)
    assert (asked.prompt, asked.prompts) == ("", CUES)
    images = [{"from": 0, "image": "a.png"}, {"from": 3.2, "image": "b.png"}]
    asked = request(without="reference_image", reference_images=images, folder=Path("/data"))
    assert (asked.image, asked.images) == ("", (Cue("/data/a.png", 0.0), Cue("/data/b.png", 3.2)))
    assert request(prompts=[{"from_frame": 0.0, "text": "a"}]).prompts == (Cue("a", frame=0),)


@pytest.mark.parametrize(
    ("fields", "field", "code"),
    [
        ({"without": "", "prompts": PROMPTS}, "prompt", "conflict"),
        ({"without": "", "reference_images": [{"from": 0, "image": "a"}]}, "reference_image", "conflict"),
        ({"prompts": []}, "prompts", "out_of_range"),
        ({"prompts": PROMPTS * 40}, "prompts", "out_of_range"),
        ({"prompts": "she talks"}, "prompts", "wrong_type"),
        ({"prompts": [{"text": "a"}]}, "prompts[0].from", "missing_field"),
        ({"prompts": [{"from": 0}]}, "prompts[0].text", "missing_field"),
        ({"prompts": [*PROMPTS, {"from": 5, "from_frame": 9, "text": "a"}]}, "prompts[2].from", "conflict"),
        ({"prompts": [{"from": -1, "text": "a"}]}, "prompts[0].from", "out_of_range"),
        ({"prompts": [{"from": "0", "text": "a"}]}, "prompts[0].from", "wrong_type"),
        ({"prompts": [{"from_frame": 1.5, "text": "a"}]}, "prompts[0].from_frame", "wrong_type"),
        ({"prompts": [{"from": 0, "text": " "}]}, "prompts[0].text", "bad_value"),
        ({"prompts": [{"from": 0, "txet": "a"}]}, "prompts[0].txet", "unknown_field"),
        ({}, "prompt", "missing_field"),
        ({"without": "reference_image"}, "reference_image", "missing_field"),
    ],
)
def test_a_wrong_entry_of_a_job_is_named(fields: dict[str, Any], field: str, code: str) -> None:
    error = refused(**fields)
    assert (error.field, error.code) == (field, code)


def test_errors_of_the_engine_get_the_jobs_name_of_the_entry() -> None:
    assert caller_field("request.images[1].image") == "reference_images[1].image"
    assert caller_field("request.prompts[1].from") == "prompts[1].from"
    assert caller_field("request.image") == "reference_image"


def test_a_file_is_read_and_its_paths_are_relative_to_it(tmp_path: Path) -> None:
    yaml = tmp_path / "a.yaml"
    yaml.write_text("prompts:\n- {from: 0, text: she talks}\n- {from_frame: 80, text: she smiles}\n")
    assert read_timeline(str(yaml), "prompts") == CUES
    yaml.write_text("images: [{from: 0, image: a.png}, {from: 2, image: 's3://x/b.png'}]")
    assert read_timeline(str(yaml), "images") == (Cue(str(tmp_path / "a.png"), 0.0), Cue("s3://x/b.png", 2.0))
    assert read_timeline(json.dumps({"prompts": PROMPTS}), "prompts") == CUES


def test_plain_values_of_entries_are_read_as_the_same_entries() -> None:
    assert parse_timeline(plain_timeline(CUES, "prompts"), "prompts") == CUES


@pytest.mark.parametrize(
    ("text", "field", "words"),
    [
        ('{"prompts": 5}', "prompts", "not a list"),
        ('{"prompts": []}', "prompts", "at least one entry"),
        ('{"images": []}', "prompts", "has no list 'prompts'"),
        ('{"prompts": ["a"]}', "prompts[0]", "is not a mapping"),
        ('{"prompts": [{"from": 0, "text": "a"}, {"form": 1, "text": "b"}]}', "prompts[1]", "unknown key 'form'"),
        ('{"prompts": [{"from": 0}]}', "prompts[0].text", "there is no text"),
        ('{"prompts": [{"from": 0, "text": 5}]}', "prompts[0].text", "5 is not text"),
        ('{"prompts": [{"from": "soon", "text": "a"}]}', "prompts[0].from", "'soon' is not a time"),
        ('{"prompts": [{"from": NaN, "text": "a"}]}', "prompts[0].from", "nan is not a time"),
        ('{"prompts": [{"from_frame": 2.5, "text": "a"}]}', "prompts[0].from_frame", "2.5 is not a time"),
        ('{"prompts": [{"from": 0, "text": "a"}], "seed": 4}', "prompts", "unknown key 'seed'"),
    ],
)
def test_a_wrong_entry_of_a_file_is_named(text: str, field: str, words: str) -> None:
    with pytest.raises(RequestError) as caught:
        read_timeline(text, "prompts")
    assert (caught.value.field, words in caught.value.what) == (f"request.{field}", True), str(caught.value)


def overrides(*words: str) -> list[str]:
    parser = entrypoint_parser("generate", GenerateConfig, "")
    return read_entrypoint("generate", parser, words).overrides


def test_flags_with_times_become_the_list_with_the_single_value_at_0() -> None:
    given = overrides("--prompt", "she talks", "--prompt-at", "80f", "-x, '${y}'", "--prompt-at=4.5s", "she = smiles")
    (text,) = [word for word in given if word.startswith("request.prompt")]
    assert text.startswith("request.prompts=")
    assert not [word for word in given if word.startswith("request.prompt=")]
    words = [{"from": 0.0, "text": "she talks"}, {"from_frame": 80, "text": "-x, '${y}'"}]
    assert json.loads(_unquoted(text))["prompts"] == [*words, {"from": 4.5, "text": "she = smiles"}]


def _unquoted(text: str) -> str:
    from engine.assembly.compose import compose

    found = compose(["entrypoint=generate", text]).request.prompts
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prompt-at", "soon", "a"], "--prompt-at: 'soon' is not a time"),
        (["--prompt-at", "3.2", "a"], "--prompt-at: there is no prompt before 3.2; give the first one with --prompt"),
        (["--image-at", "80f", "a"], "--image-at: there is no image before 80f; give the first one with --image"),
        (["--image-at", "-1", "a"], "--image-at: '-1' is not a time"),
        (["--prompt-at", "3"], "--prompt-at needs a time and a value"),
        (["--prompt-at", "3", "--seed", "4"], "--prompt-at needs a time and a value"),
        (["--prompt-at", "3", "a", "--prompts", "b.yaml"], "--prompt-at and --prompts are both given"),
    ],
)
def test_a_flag_without_a_time_or_a_value_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        overrides(*words)


def test_help_shows_both_values_of_a_flag_with_a_time() -> None:
    text = entrypoint_parser("generate", GenerateConfig, "").format_help()
    assert [flag.name for flag in TIMED if f"{flag.name} {flag.metavar}" in text] == ["--prompt-at", "--image-at"]
