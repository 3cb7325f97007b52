"""What the studio's form means: its jobs, its errors, its code, and settings from videos."""

from __future__ import annotations

import ast
import json
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

import engine
from engine.cli.parser import entrypoint_parser, read_entrypoint
from engine.plugin.manager import installed
from engine.serving.jobs.job import parse_job
from engine.serving.studio.form import MOST_PEOPLE, FieldError, Form, Person, form_field, job_input, read_form
from engine.serving.studio.people import editor_people, equal_boxes, found_boxes, named_boxes, people_of
from engine.serving.studio.recipe import form_of
from engine.serving.studio.snippets import snippets

ONE = Form("picture.png", (Person(audio="voice.flac"),), prompt="A woman speaks.")


def address(path: Path, name: str) -> str:
    return path.name


def job(form: Form, **more: Any) -> dict[str, Any]:
    made = job_input(form, address, **more)
    # Whatever the form makes, a worker takes.
    parse_job({"input": made})
    return made


def test_an_empty_form_is_as_long_as_its_voices_and_has_the_drawn_seed() -> None:
    assert job(ONE, seed=7) == {
        "reference_image": "picture.png",
        "speakers": [{"audio": "voice.flac"}],
        "prompt": "A woman speaks.",
        "num_frames": "auto",
        "seed": 7,
    }


def test_every_value_of_the_form_reaches_the_job() -> None:
    people = (
        Person("Anna", (0.0, 0.0, 0.4, 1.0), audio="anna.wav"),
        Person("Bert", (0.5, 0.1, 1.0, 0.9), voice="silent"),
    )
    form = Form(
        "two.png", people, None, False, "add", " Two people talk. ", "blur", 2.0, 12.5, "480p", 8.0, 3.5, 2.0, True, 5.0
    )
    assert job(form) == {
        "reference_image": "two.png",
        "speakers": [
            {"audio": "anna.wav", "region": {"box": [0.0, 0.0, 0.4, 1.0]}},
            {"silence": True, "region": {"box": [0.5, 0.1, 1.0, 0.9]}},
        ],
        "prompt": "Two people talk.",
        "negative_prompt": "blur",
        "audio_type": "add",
        "resolution": "480p",
        "turbo": True,
        "fps": 12.5,
        "sampling_steps": 8,
        "guidance_scale": 3.5,
        "audio_guidance_scale": 2,
        "num_frames": 25,
        "seed": 5,
    }


def test_people_of_one_recording_have_its_channels() -> None:
    people = (Person(voice="2"), Person(voice="silent"), Person(voice="file"))
    form = Form("p.png", people, "call.wav", True, prompt="Three people.")
    assert job(form)["speakers"] == [
        {"audio": "call.wav", "channel": 2},
        {"silence": True},
        {"audio": "call.wav", "channel": 3},
    ]
    assert form.media() == {"picture": "p.png", "recording": "call.wav"}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"picture": None}, "picture"),
        ({"people": ()}, "people"),
        ({"people": (Person(),)}, "voice1"),
        ({"people": (Person(audio="a.wav"), Person())}, "voice2"),
        ({"people": (Person(voice="silent"),)}, "voice1"),
        ({"together": True}, "recording"),
        ({"prompt": "  "}, "prompt"),
        ({"seconds": 0.0}, "seconds"),
        ({"seconds": float("nan")}, "seconds"),
        ({"seconds": float("inf")}, "seconds"),
        ({"fps": 61.0}, "fps"),
        ({"fps": float("nan")}, "fps"),
        ({"steps": 1.0}, "steps"),
        ({"steps": 2.5}, "steps"),
        ({"guidance": -1.0}, "guidance"),
        ({"audio_guidance": 31.0}, "audio_guidance"),
        ({"seed": 0.5}, "seed"),
        ({"seed": 1e300}, "seed"),
    ],
)
def test_a_problem_is_told_at_its_field(changes: dict[str, Any], field: str) -> None:
    values = {**ONE.__dict__, **changes}
    with pytest.raises(FieldError) as error:
        job_input(Form(**values), address)
    assert error.value.field == field
    assert error.value.text.endswith(".")


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("reference_image", "picture"),
        ("speakers[1].audio", "voice2"),
        ("speakers[0].region.box", "people"),
        ("speakers[7].audio", "people"),
        ("audio_2", "voice2"),
        ("num_frames", "seconds"),
        ("sampling_steps", "steps"),
        ("sampler.steps", ""),
        ("", ""),
    ],
)
def test_a_field_of_the_job_is_a_field_of_the_form(name: str, field: str) -> None:
    assert form_field(name, ONE) == field


def test_an_error_of_a_voice_in_a_recording_is_one_of_the_recording() -> None:
    assert form_field("speakers[1].channel", Form(together=True)) == "recording"


def test_settings_survive_a_file_and_a_hostile_one_is_harmless() -> None:
    people = (Person("Anna", (0.1, 0.0, 0.4, 1.0), audio="a.wav"), Person("B", voice="silent"))
    form = Form("p.png", people, prompt="Hm.", seconds=1.5, turbo=True, seed=3.0)
    stored = json.loads(json.dumps(form.settings()))
    assert "p.png" not in json.dumps(stored)
    assert read_form(stored, form.media()) == form
    hostile = {
        "people": [{"name": 3, "box": ["a", 1, 2, 3], "voice": "../etc"}, "x"] * 20,
        "prompt": {"a": 1},
        "seconds": "9",
        "seed": float("nan"),
        "turbo": "yes",
        "overrides": [1, "cache=teacache"],
    }
    read = read_form(hostile)
    assert len(read.people) == MOST_PEOPLE
    assert read.people[0] == Person()
    assert (read.prompt, read.seconds, read.seed, read.turbo) == ("", None, None, False)


def test_boxes_are_people_from_left_to_right_and_equal_parts_are_the_engines_own() -> None:
    assert people_of(named_boxes(equal_boxes(3))) == [(f"Person {number}", None) for number in (1, 2, 3)]
    drawn = [
        {"name": "right", "box": [0.6, 0, 2, 1]},
        {"name": "left", "box": [-1, 0, 0.5, 1]},
        {"name": "empty", "box": [0.5, 0.5, 0.5, 0.5]},
        "no person",
    ]
    assert people_of(drawn) == [("left", (0.0, 0.0, 0.5, 1.0)), ("right", (0.6, 0.0, 1.0, 1.0))]
    assert people_of("nothing") == []
    assert editor_people((Person("Anna"), Person())) == [
        {"name": "Anna", "box": [0.0, 0.0, 0.5, 1.0]},
        {"name": "Person 2", "box": [0.5, 0.0, 1.0, 1.0]},
    ]


def test_the_people_of_a_new_picture_are_found(tmp_path: Path) -> None:
    examples = Path(engine.__file__).parent / "examples"
    left, right = found_boxes(str(examples / "two.png"), drawn=True)
    assert left[2] < 0.6
    assert right[0] > 0.4
    assert found_boxes(str(examples / "one.png"), drawn=True) == equal_boxes(1)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    assert found_boxes(str(broken), drawn=True) == []


SHOWN = {
    "reference_image": "a picture.png",
    "speakers": [{"audio": "it's.flac", "region": {"box": [0.0, 0.0, 0.5, 1.0]}}, {"silence": True}],
    "prompt": 'She says: true, "it\'s" $HOME `x` \\ done',
    "num_frames": "auto",
    "turbo": True,
    "seed": 7,
}


def test_the_code_for_curl_sends_the_job(tmp_path: Path) -> None:
    for name in ("a picture.png", "it's.flac"):
        (tmp_path / name).write_bytes(name.encode())
    code = snippets(SHOWN, (), "https://api.runpod.ai/v2/abc")["curl"]
    assert "https://api.runpod.ai/v2/abc/run" in code
    sent = subprocess.run(
        ["bash", "-c", code.partition(" |\n  curl")[0]], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    parsed = json.loads(sent.stdout)["input"]
    # base64 of the files' names, which are their content.
    assert parsed["reference_image"] == "YSBwaWN0dXJlLnBuZw=="
    assert parsed["speakers"][0]["audio"] == "aXQncy5mbGFj"
    assert parsed["prompt"] == SHOWN["prompt"]


def test_the_code_for_python_is_the_job() -> None:
    code = snippets(SHOWN, (), None)["Python"]
    assigned = next(node for node in ast.parse(code).body if isinstance(node, ast.Assign))
    value = eval(compile(ast.Expression(assigned.value), "job", "eval"), {"file": lambda name: name})
    assert value == SHOWN
    assert "http://127.0.0.1:8000/v2" in code


@pytest.mark.parametrize("plain", [True, False])
def test_the_command_line_is_one_that_generate_takes(*, plain: bool) -> None:
    shown: dict[str, Any] = SHOWN | ({"speakers": [{"audio": "a.flac"}, {"silence": True}]} if plain else {})
    words = shlex.split(snippets(shown, ("model=tiny",), None)["Command line"])
    assert words[:2] == ["multitalk", "generate"]
    config = installed().entrypoints.config("generate")
    parsed = read_entrypoint("generate", entrypoint_parser("generate", config, ""), words[2:])
    assert "sampler=turbo" in parsed.overrides
    assert "model=tiny" in parsed.overrides
    assert any(one.startswith("request.prompt=") for one in parsed.overrides)
    assert any(one.startswith("request.audio=" if plain else "request.speakers=") for one in parsed.overrides)


def test_the_recipe_of_a_video_fills_the_form() -> None:
    provenance = {
        "model": "tiny",
        "model_settings": {"fps": 25.0},
        "resolution": "small",
        "sampler": {"bundle": "turbo", "steps": 5},
        "guidance": {"text_scale": 1.0, "audio_scale": 2.0},
        "request": {
            "prompt": "Two people talk.",
            "negative_prompt": None,
            "frames": 50,
            "fps": None,
            "seed": 9,
            "audio_type": "add",
            "speakers": [{"box": [0, 0, 0.4, 1], "mask": False, "silence": False}, {"mask": True, "silence": True}],
        },
    }
    form, told = form_of(provenance)
    assert (form.prompt, form.seconds, form.seed, form.order, form.turbo) == ("Two people talk.", 2.0, 9.0, "add", True)
    assert (form.steps, form.guidance, form.audio_guidance, form.resolution) == (5.0, 1.0, 2.0, "small")
    assert [(one.box, one.voice) for one in form.people] == [((0.0, 0.0, 0.4, 1.0), "file"), (None, "silent")]
    assert any("mask" in one for one in told)
    assert form_of({"request": "x", "sampler": [1]})[0] == Form()
