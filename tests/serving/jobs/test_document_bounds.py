"""However large or deep a document is: what is wrong with it is found in a second and without much memory."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from worker_fakes import FakeService, ask_whole, worker

from engine.errors import RequestError
from engine.serving.jobs.document_bounds import MOST_DEPTH, MOST_VALUES, TooLarge, check_bounds, parse_json
from engine.serving.jobs.job import parse_job
from engine.serving.jobs.schema import job_schema
from engine.serving.jobs.speakers import read_speakers

#: Bytes of each document.
SIZE = 10_000_000
GOOD = {"reference_image": "https://example.org/a.png", "audio_1": "https://example.org/a.wav", "prompt": "she speaks"}


def asked(**fields: Any) -> dict[str, Any]:
    return {"input": {**GOOD, **fields}}


def voices(**fields: Any) -> dict[str, Any]:
    given = asked(**fields)
    del given["input"]["audio_1"]
    return given


def deep(levels: int, *, inner: Any = 1, lists: bool = True) -> Any:
    for _ in range(levels):
        inner = [inner] if lists else {"a": inner}
    return inner


#: What is sent -> (the job, the field that is told).
LARGE: dict[str, tuple[Callable[[], Any], str]] = {
    "speakers": (lambda: voices(speakers=[{"silence": True}] * 490_000), "speakers"),
    "speakers of wrong types": (lambda: voices(speakers=[1] * 5_000_000), "speakers"),
    "a box": (lambda: asked(region_1={"box": [1] * 3_000_000}), "region_1.box"),
    "a box of a speaker": (
        lambda: voices(speakers=[{"audio": "a", "region": {"box": [0.5] * 2_500_000}}]),
        "speakers[0].region.box",
    ),
    "overrides": (lambda: asked(overrides=["a=b"] * 1_200_000), "overrides"),
    "a choice": (lambda: asked(action="x" * SIZE), "action"),
    "a choice like a known one": (lambda: asked(fit="crop" * (SIZE // 4)), "fit"),
    "a region's word": (lambda: asked(region_1="auto " * (SIZE // 5)), "region_1"),
    "a prompt": (lambda: asked(prompt="\x7f" * SIZE), "prompt"),
    "a prompt of blanks": (lambda: asked(prompt=" " * SIZE), "prompt"),
    "a resolution": (lambda: asked(resolution="a" * SIZE), "resolution"),
    "a file name": (lambda: asked(output={"filename": "a" * SIZE}), "output.filename"),
    "a file name of dots": (lambda: asked(output={"filename": "x.mp4" * (SIZE // 5)}), "output.filename"),
    "an endpoint": (
        lambda: {
            **asked(),
            "s3Config": {
                "accessId": "a",
                "accessSecret": "b",
                "bucketName": "c",
                "endpointUrl": "https://" + "a" * SIZE + " ",
            },
        },
        "s3Config.endpointUrl",
    ),
    "keys": (lambda: {**asked(), "s3Config": {f"key{number}": "secret" for number in range(500_000)}}, "s3Config"),
    "an id": (lambda: {**asked(), "id": "a" * SIZE}, "id"),
    "an id that is a list": (lambda: {**asked(), "id": [1] * 3_000_000}, "id"),
    "unknown fields": (lambda: asked(**{f"field{number}": 1 for number in range(600_000)}), "field0"),
    "one long unknown field": (lambda: asked(**{"a" * SIZE: 1}), "a" * 40 + "..."),
    "fields beside the input": (lambda: {**asked(), **{f"field{number}": 1 for number in range(600_000)}}, "job"),
    "a number in place of text": (lambda: asked(prompt=[1] * 5_000_000), "prompt"),
    "an object in place of a number": (lambda: asked(fps={str(number): 1 for number in range(600_000)}), "fps"),
    "lists of lists": (lambda: asked(region_1=[[[]] * 900] * 900), "region_1"),
    "many small lists": (lambda: asked(prompt=[[[]] * 999] * 999), "prompt"),
    "a deep list": (lambda: asked(prompt=deep(100_000)), "prompt"),
    "a deep object": (lambda: asked(region_1=deep(100_000, lists=False)), "region_1"),
    "a deep list in speakers": (lambda: voices(speakers=deep(20)), "speakers"),
    "input that is a list": (lambda: {"input": [{}] * 2_000_000}, "input"),
    "input that is text": (lambda: {"input": "{" * SIZE}, "input"),
    "base64 that is none": (lambda: asked(reference_image="A" * SIZE + "!"), "reference_image"),
    "base64 of blanks": (lambda: asked(reference_image=" " * SIZE), "reference_image"),
    "an address": (lambda: asked(reference_image="/a." * (SIZE // 3)), "reference_image"),
}


@pytest.mark.parametrize("what", LARGE)
def test_a_large_document_is_refused_by_its_field_in_a_second_and_with_little_memory(what: str) -> None:
    parse_job(asked())
    make, field = LARGE[what]
    job = make()
    tracemalloc.start()
    try:
        with pytest.raises(RequestError) as caught:
            parse_job(job)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Twice, since tracing is slow: the second look is timed.
    began = time.process_time()
    with pytest.raises(RequestError):
        parse_job(job)
    took = time.process_time() - began

    assert caught.value.field == field
    assert caught.value.hint
    assert len(str(caught.value)) < 1500
    assert took < 1
    # The document itself is not counted; two copies of a text of its size are.
    assert peak < 3 * SIZE


def test_a_worker_answers_a_large_document_in_a_second() -> None:
    handler = worker(FakeService())
    for make, _ in LARGE.values():
        job = make()
        began = time.process_time()
        told = ask_whole(handler, job)
        assert time.process_time() - began < 2
        assert told["error_code"] != "internal_error"


def test_a_list_that_is_too_long_is_told_by_its_own_bound() -> None:
    with pytest.raises(RequestError, match="speakers: a list is longer than 8 entries; give a list of 1 to 8 entries"):
        parse_job(voices(speakers=[{"silence": True}] * 490_000))
    with pytest.raises(RequestError, match=r"region_1\.box: a list is longer than 4 entries"):
        parse_job(asked(region_1={"box": [1] * 3_000_000}))


def test_every_list_and_object_of_a_job_has_a_bound_of_its_own() -> None:
    # What is too long for check_bounds is not looked into, because the schema refuses it.
    def walk(part: Any) -> None:
        if isinstance(part, dict):
            if part.get("type") == "array":
                assert part["maxItems"] <= 100
            if part.get("type") == "object" and "properties" in part and part.get("title") != "Job":
                assert part["additionalProperties"] is False
            for inner in part.values():
                walk(inner)
        elif isinstance(part, list):
            for inner in part:
                walk(inner)

    schema = job_schema()
    del schema["$defs"]["answer"], schema["$defs"]["error"]
    walk(schema)


@pytest.mark.parametrize("levels", [MOST_DEPTH + 1, 500, 5000])
def test_nesting_is_bounded_whatever_it_is_made_of(levels: int) -> None:
    for lists in (True, False):
        with pytest.raises(RequestError, match=r"nested deeper than 16") as caught:
            check_bounds(deep(levels, lists=lists), field="job")
        assert caught.value.code == "out_of_range"
    check_bounds(deep(MOST_DEPTH, inner="x"))


def test_a_value_that_holds_itself_is_refused() -> None:
    knot: list[Any] = []
    knot += [knot, knot]
    with pytest.raises(RequestError):
        check_bounds(knot)


@pytest.mark.parametrize(
    "text", ["[" * 5_000_000, "[" + "{}," * 3_000_000 + "{}]", "[" + "1," * 5_000_000 + "1]", '{"a":' * 1_000_000]
)
def test_a_text_of_too_many_values_is_not_parsed(text: str) -> None:
    raw = text.encode()
    began = time.process_time()
    tracemalloc.start()
    try:
        with pytest.raises(TooLarge):
            parse_json(raw)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert time.process_time() - began < 1
    assert peak < 2**20


def test_a_large_sensible_job_is_parsed() -> None:
    job = asked(reference_image="data:image/png;base64," + "A" * SIZE, prompt="a, b, [c], {d} " * 600)
    assert parse_json(b"\xef\xbb\xbf" + json.dumps(job).encode()) == job
    check_bounds(job)
    assert MOST_VALUES > 1000


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[" * 3000, "nested too deep"),
        ('{"speakers": ' + "[" * 3000 + "]" * 3000 + "}", "nested too deep"),
        ('{"speakers": ' + "[" * 300 + "]" * 300 + "}", "nested deeper"),
        ("x: " + "[" * 3000, "nested too deep"),
        ("a: &a [1, 2]\nspeakers: " + json.dumps([{"audio": "x"}] * 20_000), "no list 'speakers'|longer|unknown key"),
        ("speakers: " + "- x\n" * 400_000, "too long to be read as YAML"),
        (
            "a: &a [x, x, x, x, x, x, x, x]\n"
            + "".join(
                f"{new}: &{new} [{', '.join([f'*{old}'] * 8)}]\n"
                for old, new in zip("abcdefghi", "bcdefghij", strict=True)
            )
            + "speakers: *j\n",
            "more than 10000 values",
        ),
    ],
)
def test_a_speakers_file_that_is_too_deep_or_too_large_is_one_line(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "who.yaml"
    path.write_text(text, "utf-8")
    with pytest.raises(RequestError, match=told) as caught:
        read_speakers(str(path))
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "given", ["[" * 100_000, pytest.param("[" + "1," * 300_000 + "1]", marks=pytest.mark.slow)], ids=["deep", "long"]
)
def test_a_test_input_that_is_no_json_is_one_line(given: str) -> None:
    pytest.importorskip("runpod")
    code = (
        "import sys; from engine.cli.main import main; "
        "sys.exit(main(['runpod', 'model=tiny', '--test-input', sys.stdin.read()]))"
    )
    done = subprocess.run([sys.executable, "-c", code], input=given, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "multitalk: error: entrypoint.test_input: this is not JSON: " in done.stderr
    assert "Traceback" not in done.stderr
