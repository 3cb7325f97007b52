"""The examples in docs/endpoint.md and docs/client.md run, against an endpoint with a real worker."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from running_endpoint import RunningEndpoint, running

ROOT = Path(__file__).parents[3]
DOCS = {name: (ROOT / "docs" / name).read_text("utf-8") for name in ("endpoint.md", "client.md")}
EXAMPLES = [
    pytest.param(block, id=f"{name}-{number}")
    for name, text in DOCS.items()
    for number, block in enumerate(re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
]
runpod = pytest.importorskip("runpod")


@pytest.fixture(scope="module")
def server() -> Iterator[RunningEndpoint]:
    with running() as server:
        yield server


@pytest.mark.parametrize("example", EXAMPLES)
def test_example_runs_as_it_is_written(
    server: RunningEndpoint,
    example: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "engine" / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(runpod, "endpoint_url_base", None)
    assert "http://127.0.0.1:8000/v2" in example
    there: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(example.replace("http://127.0.0.1:8000/v2", server.endpoint.base_url), "example", "exec"), there)
    told = capsys.readouterr().out
    if "talk.mp4" in example:
        assert "talk.mp4" in told
        assert (tmp_path / "talk.mp4").stat().st_size == 1200
    else:
        assert "'action': 'health'" in told


def test_every_code_of_the_client_is_documented() -> None:
    used: set[str] = set()
    for path in (ROOT / "engine" / "client").glob("*.py"):
        text = path.read_text("utf-8")
        used |= set(re.findall(r"code=\"(\w+)\"", text))
        # The tables of answers.py, and the code for what is in neither.
        used |= set(re.findall(r"^    \d+: \(\"(\w+)\"", text, re.MULTILINE))
        used |= set(re.findall(r"^    \"[A-Z_]+\": \(\"[^\"]*\", \"(\w+)\"\)", text, re.MULTILINE))
    table = DOCS["client.md"].partition("| `code` |")[2]
    assert used | {"server_error", "refused"} == set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))


def test_every_verb_is_documented() -> None:
    pytest.importorskip("aiohttp")
    from engine.serving.endpoint.client_api import routes

    served = {route.path.removeprefix("/v2/x/").partition("/")[0] for route in routes("x")}
    assert served == set(re.findall(r"`(?:GET|POST) /([\w-]+)", DOCS["endpoint.md"])) | {"status"}
