"""Which weights a paid service may run: one table, in the manifest, the page, `models list` and a worker's answer."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from engine import EngineService
from engine.cli.main import main
from engine.errors import ConfigError
from engine.hub.licences import COMMERCIAL, licences, licences_of, may_be_hosted, table
from engine.hub.manifest import Manifest, read_manifest

ROOT = Path(__file__).parents[2]
#: Pages with the table, and which of its columns they have.
PAGES = ((ROOT / "docs" / "which-model.md", (0, 1, 2, 3, 4)), (ROOT / "README.md", (0, 2, 3)))
MODELS = sorted(path.stem for path in (ROOT / "conf" / "model").glob("*.yaml"))


def rows_of(columns: tuple[int, ...]) -> str:
    rows = [[row[column] for column in columns] for row in table(licences(read_manifest()))]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    lines.insert(1, "|---" * len(rows[0]) + "|")
    return "\n".join(lines)


@pytest.mark.parametrize(("page", "columns"), PAGES, ids=lambda value: getattr(value, "name", ""))
def test_the_table_of_a_page_is_what_the_manifest_says(page: Path, columns: tuple[int, ...]) -> None:
    text = page.read_text("utf-8")
    start, end = "<!-- licences -->\n", "\n<!-- /licences -->"
    written = re.sub(f"{start}.*?{end.strip()}", lambda _: start + rows_of(columns) + end, text, flags=re.DOTALL)
    assert start in text
    if os.environ.get("MULTITALK_WRITE_DOCS"):
        page.write_text(written, "utf-8")
        return
    assert text == written, "run: MULTITALK_WRITE_DOCS=1 pytest tests/hub/test_licences.py"


@pytest.mark.parametrize("model", MODELS)
def test_every_model_that_can_be_chosen_is_in_the_table(model: str) -> None:
    assert licences_of(read_manifest(), model), "add its weights to engine/hub/manifest.yaml"


def test_every_licence_has_a_source_and_an_unknown_one_allows_nothing() -> None:
    for one in licences(read_manifest()):
        assert one.source
        assert one.weights
        assert one.commercial in COMMERCIAL
        assert (one.licence == "unknown") == (one.commercial == "unknown")


def test_a_model_that_is_added_to_the_manifest_appears_by_itself() -> None:
    file = {"path": "a.safetensors", "about": 1}
    added: dict[str, Any] = {
        "default": "avatar",
        "repositories": {
            "acme/avatar": {
                "revision": "main",
                "licence": "MIT",
                "commercial": "yes",
                "weights": "Avatar",
                "source": "x",
            },
            "acme/voice": {"revision": "main", "licence": "CC-BY-NC-4.0", "commercial": "no"},
        },
        "parts": {
            "avatar": {"repository": "acme/avatar", "files": [file]},
            "voice": {"repository": "acme/voice", "files": [file | {"to": "b.safetensors"}]},
        },
        "presets": {"avatar": {"about": "", "folder": "avatar", "use": "model=avatar", "parts": ["avatar", "voice"]}},
    }
    rows = licences_of(Manifest(added), "avatar")
    assert [(one.weights, one.commercial) for one in rows] == [("Avatar", "yes"), ("acme/voice", "no")]
    assert may_be_hosted(rows) == "no"
    assert may_be_hosted(rows[:1]) == "yes"
    added["repositories"]["acme/voice"]["commercial"] = True
    with pytest.raises(ConfigError, match="commercial is 'True' for acme/voice"):
        licences(Manifest(added))


def test_models_list_has_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["models", "list", "--model-path", str(tmp_path)]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "MultiTalk: Apache-2.0; paid service: yes" in text
    assert "audio encoder (wav2vec2): unknown; paid service: unknown" in text
    assert main([*words, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["licences"]
    assert {row["repository"]: row["commercial"] for row in rows}["MeiGen-AI/InfiniteTalk"] == "yes"


def test_capabilities_say_whether_the_model_may_be_hosted() -> None:
    tiny = EngineService(["model=tiny"]).capabilities()
    assert (tiny["commercial"], [one["licence"] for one in tiny["licences"]]) == ("yes", ["MIT"])
    multitalk = EngineService(["model=multitalk"]).capabilities()
    assert multitalk["commercial"] == "unknown"
    assert {"Apache-2.0", "unknown"} == {one["licence"] for one in multitalk["licences"]}
    assert EngineService(["model=tiny", "model.name=mine"]).capabilities()["commercial"] == "unknown"
    json.dumps(multitalk)
