"""The schema of a job: what is accepted, what is refused, and in which words."""

from __future__ import annotations

import json
from configparser import ConfigParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engine.errors import ConfigError, RequestError
from engine.serving.jobs.defaults import input_defaults
from engine.serving.jobs.job import parse_job
from engine.serving.jobs.schema import DEFAULT_LIMITS, JobLimits, job_schema

ROOT = Path(__file__).parents[3]
GOOD = {"reference_image": "anna.png", "audio_1": "anna.wav", "prompt": "a woman speaks"}


def job(**fields: Any) -> dict[str, Any]:
    return {"input": {**GOOD, **fields}}


def refused(wrong: Any, limits: JobLimits = DEFAULT_LIMITS) -> RequestError:
    with pytest.raises(RequestError) as caught:
        parse_job(wrong, limits=limits)
    assert "\n" not in str(caught.value)
    assert caught.value.hint
    return caught.value


def test_schema_is_sound_and_closed() -> None:
    schema = job_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    for name in ("input", "speaker", "output", "s3Config", "error"):
        assert schema["$defs"][name]["additionalProperties"] is False


def test_every_field_is_described() -> None:
    parts = job_schema()["$defs"]
    for name in ("input", "speaker", "output", "s3Config", "answer", "error"):
        for field, about in parts[name]["properties"].items():
            assert about["description"].endswith((".", "`")), field


def test_defaults_of_the_schema_are_accepted_by_it() -> None:
    parse_job(job(**input_defaults()))


def test_examples_of_the_schema_are_accepted_by_it() -> None:
    schema = job_schema()
    validator = jsonschema.Draft202012Validator(schema)
    for shown in schema["examples"]:
        validator.validate(shown)
        parse_job(shown)


def test_schema_ships_in_the_package() -> None:
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg", "utf-8")
    assert "schema.json" in setup["options.package_data"]["engine.serving.jobs"]
    assert json.loads(files("engine.serving.jobs").joinpath("schema.json").read_text("utf-8"))["$defs"]


def test_a_copy_of_the_schema_is_the_callers_own() -> None:
    job_schema()["$defs"].clear()
    assert job_schema()["$defs"]


@pytest.mark.parametrize(
    ("field", "accepted"),
    [
        ("num_frames", [1, 201, 100.0, "auto"]),
        ("seed", [-1, 0, 2**63 - 1, 7.0]),
        ("sampling_steps", [2, 100, 20.0]),
        ("guidance_scale", [0, 1, 7.5, 30]),
        ("audio_guidance_scale", [0, 30]),
        ("fps", [1, 8, 23.976, 60]),
        ("turbo", [True, False]),
        ("health_check", [True, False]),
        ("negative_prompt", ["", "blurred", "x" * 10_000]),
        ("prompt", ["x", "x" * 10_000, " x "]),
        ("resolution", ["480p", "small", "very-large_2"]),
        ("audio_type", ["para", "add"]),
        ("timing", ["direct", "native"]),
        ("fit", ["crop", "pad"]),
        ("action", ["generate", "plan", "health", "capabilities", "selftest"]),
        ("overrides", [[], ["cache=teacache"], ["a=b"] * 32]),
        ("output", [{}, {"sink": "s3"}, {"filename": "a b.MP4"}, {"filename": "x" * 196 + ".mp4"}]),
        ("region_1", ["auto", {"box": [0, 0, 0.5, 1]}, {"mask": "m.png"}]),
    ],
)
def test_value_within_the_bounds_is_accepted(field: str, accepted: list[Any]) -> None:
    for value in accepted:
        parse_job(job(**{field: value}))


@pytest.mark.parametrize(
    ("field", "code", "values"),
    [
        ("num_frames", "out_of_range", [0, -1, 202, 10**50]),
        ("num_frames", "wrong_type", [1.5, "100", "Auto", True, [], {}, float("nan"), float("inf")]),
        ("seed", "out_of_range", [-2, 2**63]),
        ("seed", "wrong_type", [0.5, "42", False]),
        ("sampling_steps", "out_of_range", [1, 101]),
        ("sampling_steps", "wrong_type", ["20", 2.5, True]),
        ("guidance_scale", "out_of_range", [-0.1, 30.1]),
        ("guidance_scale", "wrong_type", ["7.5", True, float("nan"), float("-inf")]),
        ("audio_guidance_scale", "out_of_range", [-1, 31]),
        ("fps", "out_of_range", [0, -8, 0.999, 1e-300, 60.1]),
        ("fps", "wrong_type", ["8", float("nan")]),
        ("turbo", "wrong_type", [1, 0, "true", []]),
        ("health_check", "wrong_type", [1, "yes"]),
        ("prompt", "bad_value", ["", "  ", "\n"]),
        ("prompt", "out_of_range", ["x" * 10_001]),
        ("prompt", "wrong_type", [3, ["x"]]),
        ("negative_prompt", "out_of_range", ["x" * 10_001]),
        ("reference_image", "out_of_range", [""]),
        ("reference_image", "wrong_type", [1, {"url": "x"}]),
        ("audio_2", "out_of_range", [""]),
        ("resolution", "bad_value", ["480p,720p", "a b", "", "${oc.env:HOME}", "480p\n", "../x", "x" * 65]),
        ("audio_type", "unknown_choice", ["parra", ""]),
        ("timing", "unknown_choice", ["exact"]),
        ("fit", "unknown_choice", ["stretch"]),
        ("action", "unknown_choice", ["helth", ""]),
        ("action", "wrong_type", [1]),
        ("overrides", "wrong_type", ["cache=none", {"cache": "none"}]),
        ("overrides", "out_of_range", [["a=b"] * 33]),
        ("speakers", "out_of_range", [[], [{"silence": True}] * 9]),
        ("region_1", "unknown_choice", ["left"]),
        ("region_1", "wrong_type", [3, [0, 0, 1, 1]]),
        ("region_1", "bad_value", [{}, {"box": [0, 0, 1, 1], "mask": "m.png"}]),
        ("output", "wrong_type", ["s3"]),
    ],
)
def test_value_outside_the_bounds_is_refused_by_its_field(field: str, code: str, values: list[Any]) -> None:
    for value in values:
        fields = {name: own for name, own in GOOD.items() if name != "audio_1" or field != "speakers"}
        error = refused({"input": {**fields, field: value}})
        assert (error.field, error.code) == (field, code), value


@pytest.mark.parametrize(
    ("fields", "field", "code"),
    [
        ({"overrides": ["a=b", 3]}, "overrides[1]", "wrong_type"),
        ({"overrides": ["x" * 201]}, "overrides[0]", "out_of_range"),
        ({"region_1": {"box": [0, 0, 1]}}, "region_1.box", "out_of_range"),
        ({"region_1": {"box": [0, "0", 1, 1]}}, "region_1.box[1]", "wrong_type"),
        ({"region_1": {"box": [0, 0, float("nan"), 1]}}, "region_1.box[2]", "wrong_type"),
        ({"region_1": {"mask": ""}}, "region_1.mask", "out_of_range"),
        ({"output": {"sink": "s3 base64"}}, "output.sink", "bad_value"),
        ({"output": {"filename": "a/b.mp4"}}, "output.filename", "bad_value"),
        ({"output": {"filename": "..\\b.mp4"}}, "output.filename", "bad_value"),
        ({"output": {"filename": ".mp4"}}, "output.filename", "bad_value"),
        ({"output": {"filename": "a.avi"}}, "output.filename", "bad_value"),
        ({"output": {"filename": "a.mp4\n"}}, "output.filename", "bad_value"),
        ({"output": {"filename": "a\0.mp4"}}, "output.filename", "bad_value"),
    ],
)
def test_value_inside_a_field_is_refused_by_its_place(fields: dict[str, Any], field: str, code: str) -> None:
    error = refused(job(**fields))
    assert (error.field, error.code) == (field, code)


def test_message_says_what_was_given_and_what_would_work() -> None:
    assert str(refused(job(num_frames=500))) == (
        "num_frames: 500 is more than 201; give a whole number from 1 to 201, or 'auto'"
    )
    assert str(refused(job(seed="42"))).startswith("seed: '42' is not a whole number; give a whole number from 0 to ")
    assert str(refused(job(fit="cropp"))) == "fit: 'cropp' is unknown; did you mean crop? Choose crop or pad"


def test_a_long_value_is_not_repeated() -> None:
    assert len(str(refused(job(fps="A" * 10_000_000)))) < 200
    assert len(str(refused(job(**{"x" * 1_000_000: 1})))) < 1000


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("promt", "prompt"),
        ("numFrames", "num_frames"),
        ("frames", "num_frames"),
        ("image", "reference_image"),
        ("steps", "sampling_steps"),
        ("audio1", "audio_1"),
        ("negativePrompt", "negative_prompt"),
        ("Turbo", "turbo"),
        ("override", "overrides"),
    ],
)
def test_unknown_field_is_refused_with_the_nearest_name(name: str, near: str) -> None:
    error = refused(job(**{name: 1}))
    assert (error.field, error.code) == (name, "unknown_field")
    assert "did you mean" in error.hint
    assert near in error.hint


def test_unknown_field_that_is_near_to_none_lists_all() -> None:
    error = refused(job(zebra=1))
    assert set(job_schema()["$defs"]["input"]["properties"]) <= set(error.hint.removeprefix("known: ").split(", "))


def test_unknown_field_is_told_before_the_one_it_was_meant_for() -> None:
    error = refused({"input": {"reference_image": "a", "audio_1": "b", "promt": "c"}})
    assert error.field == "promt"
    assert "also wrong: prompt" in error.what


def test_first_error_is_told_and_the_others_are_named() -> None:
    error = refused(job(num_frames=0, fps=0, seed=-2))
    assert error.field == "num_frames"
    assert "(also wrong: fps, seed)" in error.what


def test_a_flood_of_errors_is_one_line() -> None:
    error = refused(job(**{f"field{number}": number for number in range(50_000)}))
    assert "more)" in error.what
    assert len(str(error)) < 1000


@pytest.mark.parametrize("missing", GOOD)
def test_required_field_is_missed(missing: str) -> None:
    error = refused({"input": {name: value for name, value in GOOD.items() if name != missing}})
    assert (error.field, error.code) == (missing, "missing_field")


def test_null_counts_as_not_given() -> None:
    assert parse_job(job(audio_2=None, seed=None, s3Config=None)) == parse_job(job())
    assert refused(job(prompt=None)).code == "missing_field"


@pytest.mark.parametrize("wrong", [None, [], "x", 3])
def test_a_job_that_is_no_object_is_refused(wrong: Any) -> None:
    assert (refused(wrong).field, refused(wrong).code) == ("job", "wrong_type")


@pytest.mark.parametrize("wrong", [[], "x", 3])
def test_an_input_that_is_no_object_is_refused(wrong: Any) -> None:
    assert (refused({"input": wrong}).field, refused({"input": wrong}).code) == ("input", "wrong_type")


def test_a_job_without_input_is_refused() -> None:
    assert refused({}).field == "input"
    assert refused({"id": "a", "input": None}).code == "missing_field"


def test_field_beside_the_input_is_sent_inside() -> None:
    error = refused({**job(), "prompt": "x"})
    assert (error.field, error.hint) == ("prompt", 'it belongs inside "input"')


def test_fields_of_the_platform_are_left_alone() -> None:
    parse_job(
        {
            **job(),
            "id": "sync-1f-u1",
            "webhook": "https://example.org",
            "policy": {"ttl": 1},
            "output": None,
            "retries": 0,
        }
    )


def test_limit_of_a_worker_moves_bound_default_and_hint() -> None:
    limits = JobLimits(frames=50, steps=10)
    assert input_defaults(limits)["num_frames"] == 50
    assert input_defaults(limits)["sampling_steps"] == 10
    assert "from 1 to 50" in refused(job(num_frames=51), limits).hint
    assert refused(job(sampling_steps=11), limits).code == "out_of_range"
    request = parse_job(job(num_frames=1000), limits=JobLimits(frames=1000)).request
    assert request is not None
    assert request.frames == 1000


@pytest.mark.parametrize(
    "wrong",
    [{"frames": 0}, {"frames": True}, {"frames": 1.5}, {"steps": 1}, {"seconds": float("nan")}, {"forwards": 0}],
)
def test_limit_that_lets_nothing_through_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="limits"):
        JobLimits(**wrong)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=80),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from([*job_schema()["$defs"]["input"]["properties"], "s3Config", "other"])


@example(fields={"region_1": {"\n": None}}, beside={})
@example(fields={}, beside={"\n": 1})
@given(fields=st.dictionaries(NAMES, JSON, max_size=4), beside=st.dictionaries(st.text(max_size=9), JSON, max_size=2))
def test_whatever_is_sent_is_a_job_or_one_request_error(fields: dict[str, Any], beside: dict[str, Any]) -> None:
    try:
        parse_job({"input": {**GOOD, **fields}, **beside})
    except RequestError as error:
        assert error.field  # noqa: PT017
        assert error.code  # noqa: PT017
        assert "\n" not in str(error)  # noqa: PT017


@given(value=st.integers())
def test_frames_are_accepted_exactly_within_the_bounds(value: int) -> None:
    if 1 <= value <= 201:
        parse_job(job(num_frames=value))
    else:
        assert refused(job(num_frames=value)).code == "out_of_range"
