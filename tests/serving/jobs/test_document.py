"""docs/api.md is what the schema says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema

from engine.serving.jobs.document import document
from engine.serving.jobs.job import parse_job
from engine.serving.jobs.schema import job_schema

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "api.md").read_text("utf-8")
BLOCKS = [json.loads(block) for block in re.findall(r"^```json\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)]


def test_page_is_up_to_date() -> None:
    assert document() == PAGE, "run: python -m engine.serving.jobs.document > docs/api.md"


def test_jobs_in_the_page_are_accepted() -> None:
    jobs = [block for block in BLOCKS if "input" in block]
    assert len(jobs) == 1 + len(job_schema()["examples"])
    for job in jobs:
        parse_job(job)


def test_answers_in_the_page_are_as_the_schema_says() -> None:
    schema = job_schema()
    answers = [block for block in BLOCKS if "input" not in block]
    assert len(answers) == 3
    for answer in answers:
        part = "error" if "error" in answer else "answer"
        jsonschema.Draft202012Validator({"$defs": schema["$defs"], "$ref": f"#/$defs/{part}"}).validate(answer)


def test_page_names_every_field_and_code() -> None:
    parts = job_schema()["$defs"]
    for part in ("input", "speaker", "output", "s3Config", "answer", "error"):
        for field in parts[part]["properties"]:
            assert f"| `{field}` |" in PAGE
    for code in parts["error"]["properties"]["error_code"]["anyOf"][:-1]:
        assert f"| `{code['const']}` |" in PAGE


def test_page_shows_two_people_turbo_regions_and_a_bucket() -> None:
    jobs = [block for block in BLOCKS if "input" in block]
    assert [job for job in jobs if "audio_2" in job["input"]]
    assert [job for job in jobs if job["input"].get("turbo")]
    assert [job for job in jobs if "region_1" in job["input"]]
    assert [job for job in jobs if "s3Config" in job]


def test_tables_are_whole() -> None:
    for table in re.findall(r"(?:^\|.*\n)+", PAGE, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}) == 1
