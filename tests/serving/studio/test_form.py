"""What the studio's form means: its jobs, its errors, its code, and settings from videos."""

from __future__ import annotations

import ast
import json
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import engine
from engine.cli.parser import entrypoint_parser, read_entrypoint
from engine.plugin.manager import installed
from engine.serving.jobs.job import parse_job
from engine.serving.studio.dialogue import names_of
from engine.serving.studio.fields import (
    CHANNELS,
    FOUND,
    MOST_PEOPLE,
    SCRIPT,
    FieldError,
    Person,
    equal_boxes,
)
from engine.serving.studio.form import Form, form_field, job_input, read_form
from engine.serving.studio.people import editor_people, found_boxes, named_boxes, people_of, with_names
from engine.serving.studio.recipe import form_of
from engine.serving.studio.snippets import snippets
from engine.stages.script import parse_script

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


def test_a_length_that_a_worker_does_not_allow_is_told_in_seconds() -> None:
    assert job(replace(ONE, seconds=8.04), most_frames=201)["num_frames"] == 201
    with pytest.raises(FieldError, match=r"at most 8\.04 s, 201 frames") as error:
        job_input(replace(ONE, seconds=8.08), address, most_frames=201)
    assert error.value.field == "seconds"


def test_every_value_of_the_form_reaches_the_job() -> None:
    people = (
        Person("Anna", (0.0, 0.0, 0.4, 1.0), audio="anna.wav"),
        Person("Bert", (0.5, 0.1, 1.0, 0.9), voice="silent"),
    )
    form = Form(
        "two.png", people, order="add", prompt=" Two people talk. ", negative_prompt="blur", seconds=2.0, fps=12.5,
        resolution="480p", steps=8.0, guidance=3.5, audio_guidance=2.0, turbo=True, seed=5.0,
    )  # fmt: skip
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
    form = Form("p.png", people, "call.wav", CHANNELS, prompt="Three people.")
    assert job(form)["speakers"] == [
        {"audio": "call.wav", "channel": 2},
        {"silence": True},
        {"audio": "call.wav", "channel": 3},
    ]
    assert form.media() == {"picture": "p.png", "recording": "call.wav"}


LEFT, RIGHT = (0.0, 0.0, 0.4, 1.0), (0.6, 0.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("people", "boxes"),
    [
        ((Person(voice="1"), Person(voice="2")), None),
        ((Person(), Person(voice="silent")), None),
        ((Person(voice="2"), Person(voice="1")), [[0.5, 0.0, 1.0, 1.0], [0.0, 0.0, 0.5, 1.0]]),
        ((Person("", LEFT, "2"), Person("", RIGHT, "1")), [[*RIGHT], [*LEFT]]),
    ],
)
def test_found_speakers_of_a_recording_have_their_boxes_as_they_first_speak(
    people: tuple[Person, ...], boxes: list[list[float]] | None
) -> None:
    form = Form("p.png", people, "call.wav", FOUND, diariser="resemblyzer", prompt="Two people.")
    made = job(form)
    assert (made["voices"], made["people"], made.get("boxes")) == ("call.wav", 2, boxes)
    assert made["overrides"] == ["diariser=resemblyzer"]
    assert "speakers" not in made
    assert form.media() == {"picture": "p.png", "recording": "call.wav"}


SAID = "Anna: Hello.\n(pause 0.5)\nben: Well: yes.\n  and no\nAnna: Good."


def test_a_script_has_the_boxes_of_its_people() -> None:
    assert names_of(SAID) == ["Anna", "ben"]
    assert names_of("# me: no\n@ben voice=f3\n@Ann Lee\nben: x") == ["ben", "Ann Lee"]
    assert job(Form("p.png", (), voices=SCRIPT, script=SAID, prompt="x"))["script"] == SAID
    # By name, else from left to right; places in the script stay.
    people = (Person("Ben", LEFT), Person("Person 2", RIGHT))
    made = job(Form("p.png", people, voices=SCRIPT, script=SAID, prompt="x", order="add"))
    assert made["script"] == f"@Anna box=0.6,0,1,1\n@ben box=0,0,0.4,1\n{SAID}"
    assert "audio_type" not in made
    assert "speakers" not in made
    declared = "@Anna voice=f3\n@Ben box=0,0,0.5,1\nAnna: Hello."
    made = job(Form("p.png", (Person("", LEFT), Person("", RIGHT)), voices=SCRIPT, script=declared, prompt="x"))
    assert made["script"] == "@Anna voice=f3 box=0,0,0.4,1\n@Ben box=0,0,0.5,1\nAnna: Hello."
    script = parse_script(made["script"])
    assert [one.region.box for one in script.people] == [LEFT, (0.0, 0.0, 0.5, 1.0)]


def test_boxes_get_the_names_of_a_scripts_people() -> None:
    assert with_names(named_boxes(equal_boxes(1)), ["Anna", "Ben"]) == [
        {"name": "Anna", "box": [0.0, 0.0, 0.5, 1.0]},
        {"name": "Ben", "box": [0.5, 0.0, 1.0, 1.0]},
    ]
    drawn = [{"name": "Person 1", "box": [*LEFT]}, {"name": "Me", "box": [*RIGHT]}]
    assert [one["name"] for one in with_names(drawn, ["Anna", "Ben"]) or ()] == ["Anna", "Me"]
    assert with_names(drawn, ["Anna", "Ben", "Cem"]) is None
    assert with_names(drawn, []) is None
    assert with_names([{"name": "Anna", "box": [0, 0, 1, 1]}], ["Anna"]) is None


def test_as_many_people_as_a_job_may_have() -> None:
    people = tuple(Person(audio=f"{number}.wav") for number in range(MOST_PEOPLE))
    assert len(job(Form("p.png", people, prompt="x"))["speakers"]) == MOST_PEOPLE == 8


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"picture": None}, "picture"),
        ({"people": ()}, "people"),
        ({"people": (Person(),)}, "voice1"),
        ({"people": (Person(audio="a.wav"), Person())}, "voice2"),
        ({"people": (Person(voice="silent"),)}, "voice1"),
        ({"voices": CHANNELS}, "recording"),
        ({"voices": FOUND}, "recording"),
        ({"voices": FOUND, "recording": "c.wav", "people": ()}, "people"),
        ({"voices": FOUND, "recording": "c.wav", "people": (Person(voice="1"), Person(voice="1"))}, "people"),
        ({"voices": SCRIPT, "script": " "}, "script"),
        ({"voices": SCRIPT, "script": "a: b" * 5000}, "script"),
        ({"voices": SCRIPT, "script": "Anna: Hi.\nBen: Hi.", "people": (Person("", (0, 0, 0.5, 1)),)}, "people"),
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
        ("speakers[7].audio", "voice8"),
        ("speakers[8].audio", "people"),
        ("audio_2", "voice2"),
        ("num_frames", "seconds"),
        ("script", "script"),
        ("voices", "recording"),
        ("boxes[1]", "people"),
        ("sampling_steps", "steps"),
        ("sampler.steps", ""),
        ("", ""),
    ],
)
def test_a_field_of_the_job_is_a_field_of_the_form(name: str, field: str) -> None:
    assert form_field(name, ONE) == field


def test_an_error_of_a_voice_in_a_recording_is_one_of_the_recording() -> None:
    assert form_field("speakers[1].channel", Form(voices=CHANNELS)) == "recording"


def test_settings_survive_a_file_and_a_hostile_one_is_harmless() -> None:
    people = (Person("Anna", (0.1, 0.0, 0.4, 1.0), audio="a.wav"), Person("B", voice="silent"))
    form = Form("p.png", people, prompt="Hm.", seconds=1.5, turbo=True, seed=3.0)
    stored = json.loads(json.dumps(form.settings()))
    assert "p.png" not in json.dumps(stored)
    assert read_form(stored, form.media()) == form
    spoken = Form("p.png", people, voices=SCRIPT, script="A: b.", diariser="resemblyzer")
    assert read_form(json.loads(json.dumps(spoken.settings())), spoken.media() | {"voice1": "a.wav"}) == spoken
    assert read_form({"together": True}).voices == CHANNELS
    assert read_form({"voices": "x", "diariser": "x sampler=y", "script": 3}) == Form()
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


SHOWN: dict[str, Any] = {
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


PLAIN = {"speakers": [{"audio": "a.flac"}, {"silence": True}]}
RECORDED = {"voices": "call it.flac", "people": 2, "boxes": [[0.5, 0, 1, 1], [0, 0, 0.5, 1]]}


@pytest.mark.parametrize(
    ("who", "key"),
    [
        (PLAIN, "audio"),
        ({"speakers": SHOWN["speakers"]}, "speakers"),
        ({"script": "Anna: it's $1."}, "script"),
        (RECORDED, "boxes"),
    ],
)
def test_the_command_line_is_one_that_generate_takes(who: dict[str, Any], key: str) -> None:
    shown = {name: value for name, value in SHOWN.items() if name != "speakers"} | who
    words = shlex.split(snippets(shown, ("model=tiny",), None)["Command line"])
    assert words[:2] == ["multitalk", "generate"]
    config = installed().entrypoints.config("generate")
    parsed = read_entrypoint("generate", entrypoint_parser("generate", config, ""), words[2:])
    assert "sampler=turbo" in parsed.overrides
    assert "model=tiny" in parsed.overrides
    assert any(one.startswith("request.prompt=") for one in parsed.overrides)
    assert any(one.startswith(f"request.{key}=") for one in parsed.overrides)


def test_the_recipe_of_a_video_fills_the_form() -> None:
    provenance: dict[str, Any] = {
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
    request = {**provenance["request"], "people": 2, "speakers": [{"box": [*RIGHT]}, {"box": [*LEFT]}]}
    found, told = form_of({**provenance, "request": request, "diariser": {"name": "resemblyzer"}})
    assert (found.voices, found.diariser) == (FOUND, "resemblyzer")
    assert [(one.box, one.voice) for one in found.people] == [(LEFT, "2"), (RIGHT, "1")]
    assert "recording" in told[0]
    speakers = [{"box": None, "channel": 2}, {"silence": True}]
    channels, _ = form_of({"request": {"speakers": speakers}})
    assert (channels.voices, [one.voice for one in channels.people]) == (CHANNELS, ["2", "silent"])
    spoken, told = form_of({"request": {**request, "script": SAID}})
    assert (spoken.voices, spoken.script) == (SCRIPT, SAID)
    assert told[0].startswith("Add the picture:")
    assert form_of({"request": "x", "sampler": [1]})[0] == Form()
