"""Whatever a job holds, its answer is one clear line with a code, and docs/hostile.md has each word for word.

`MULTITALK_WRITE_DOCS=1 pytest tests/serving/jobs/test_hostile_jobs.py` writes that page anew.
"""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hostile_jobs import GROUPS, MOST_BYTES, MOST_PIXELS, MOST_SECONDS, PUBLIC, QUERY, SECRET, Case, good
from loopback import Server, serving
from worker_fakes import ask_whole

from engine import Access, EngineService
from engine.serving.jobs.schema import job_schema
from engine.serving.worker.handler import Handler, Terms
from engine.serving.worker.warm_engine import WarmEngine

DOCS = Path(__file__).parents[3] / "docs"
PAGE = DOCS / "hostile.md"
CASES = [(group, case) for group, cases in GROUPS.items() for case in cases()]
ACCESS = Access(
    schemes=("data", "http", "https", "s3"),
    private_hosts=(PUBLIC,),
    max_bytes=MOST_BYTES,
    max_pixels=MOST_PIXELS,
    max_seconds=MOST_SECONDS,
    buckets=("films",),
)
HEAD = f"""\
# What is refused, and how

<!-- Written by `MULTITALK_WRITE_DOCS=1 pytest tests/serving/jobs/test_hostile_jobs.py`: do not edit. -->

{{count}} jobs that are broken, or mean harm, and what the caller of each was answered. Every row is a job that was
given to a worker in a test run, with real servers on loopback where one is needed; the tests hold this page to what
they get. `[internal host]` stands for the test's own server, too; the name of a public one is told. The worker takes no
paths, {MOST_BYTES} bytes an address, {MOST_PIXELS} pixels and {MOST_SECONDS:g} seconds of voice. What is not refused is
`accepted`, with its plan's warnings. [errors.md](errors.md) and [api.md](api.md) have the codes.
"""
HOST = socket.gethostname()
#: A key, a path of this machine, an address inside, its name unless it is a word. What the caller wrote may be quoted.
FORBIDDEN = re.compile(
    rf"{SECRET}|Traceback|site-packages|{tempfile.gettempdir()}/|{re.escape(str(DOCS.parent))}|{re.escape(sys.prefix)}"
    rf"|(?<![\d.-])(?:127|10|169\.254|100\.64)(?:\.\d+){{2,3}}|::1"
    + ("" if HOST.isalpha() else rf"|\b{re.escape(HOST)}\b")
)
#: Heading -> rows, as they come.
ROWS: dict[str, list[str]] = {}


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[bool, Handler]]:
    """A worker around the real engine with the tiny model, and by True one of little patience."""
    kept = tmp_path_factory.mktemp("kept")
    words = ["model=tiny", "sink=base64"]
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("AWS_", "S3_", "BUCKET_"))]:
            patch.delenv(name)
        patch.setenv("AWS_ACCESS_KEY_ID", f"machine-{SECRET}")
        patch.setenv("AWS_SECRET_ACCESS_KEY", f"machine-{SECRET}")
        patch.setenv("MODEL_PATH", str(kept))
        made = {
            hasty: Handler(WarmEngine(EngineService(words, access=access)), Terms())
            for hasty, access in ((False, ACCESS), (True, replace(ACCESS, timeout=0.5)))
        }
        yield made
        for handler in made.values():
            handler.warm_engine.close()


def filled(value: Any, server: Server | None) -> Any:
    """Put the server's URL where a job wants it."""
    if isinstance(value, Mapping):
        return {name: filled(part, server) for name, part in value.items()}
    return server.url(QUERY, host=PUBLIC) if value == "{url}" and server is not None else value


def given(case: Case, server: Server | None) -> dict[str, Any]:
    if case.job is not None:
        return dict(case.job)
    asked = {name: value for name, value in {**good(), **case.changes}.items() if value is not None}
    beside = dict(filled(case.beside, server))
    if "s3Config" in beside and "endpointUrl" in beside["s3Config"]:
        # An endpoint has no query.
        beside["s3Config"]["endpointUrl"] = beside["s3Config"]["endpointUrl"].replace(QUERY, "")
    return {"id": "job-1", "input": filled(asked, server), **beside}


def row(case: Case, told: Mapping[str, Any]) -> str:
    """Return the line of the page for an answer; a port is another in each run."""
    code, words = told.get("error_code", "accepted"), told.get("error") or "; ".join(told["warnings"])
    where = f"`{told['field']}`" if told.get("field") else ""
    text = re.sub(r"\bport \d+", "port N", words)
    return f"| {case.what} | `{code}` | {where} | {text} |".replace("\n", " ")


@pytest.mark.parametrize(("group", "case"), CASES, ids=[case.what for _, case in CASES])
def test_answer_is_one_clear_line_that_gives_nothing_away(group: str, case: Case, workers: dict[bool, Handler]) -> None:
    context = nullcontext() if case.script is None else serving(case.script, host=PUBLIC)
    with context as server:
        told = ask_whole(workers[case.hasty], given(case, server))
    ROWS.setdefault(group, []).append(row(case, told))

    words = json.dumps({name: value for name, value in told.items() if name != "weights"}, ensure_ascii=False)
    assert not FORBIDDEN.findall(words)
    if "error" in told:
        assert set(told) == {"error", "error_code", "field", "hint"}
        assert told["error_code"] in known_codes() - {"internal_error"}
        assert told["hint"]
        assert told["error"].isprintable()
        assert len(told["error"]) <= 600
    else:
        assert case.changes.get("action") == "plan"
    if not writing():
        assert row(case, told) in PAGE.read_text("utf-8").splitlines()


def test_page_is_what_the_run_produces() -> None:
    if sum(map(len, ROWS.values())) < len(CASES):
        pytest.skip("needs the answers of all the tests above")
    table = "| what is sent | `error_code` | `field` | what the caller reads |\n|---|---|---|---|\n"
    parts = [HEAD.format(count=len(CASES))]
    parts += [f"## {group}\n\n{table}" + "\n".join(rows) + "\n" for group, rows in ROWS.items()]
    page = "\n".join(parts)
    if writing():
        PAGE.write_text(page, "utf-8")
    assert page == PAGE.read_text("utf-8")


def test_there_are_as_many_as_were_promised() -> None:
    assert len({case.what for _, case in CASES}) == len(CASES) >= 60


def writing() -> bool:
    return os.environ.get("MULTITALK_WRITE_DOCS") == "1"


def known_codes() -> set[str]:
    listed = job_schema()["$defs"]["error"]["properties"]["error_code"]["anyOf"]
    table = re.findall(r"^\| `(\w+)` \|", (DOCS / "errors.md").read_text("utf-8"), re.MULTILINE)
    return {code["const"] for code in listed if "const" in code} | set(table)
