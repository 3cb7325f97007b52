"""Every example of docs/python.md, and the notebook beside it, run as they are printed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"<!-- run by: tests/talker/test_page.py -->\n```python\n(.*?)```", re.DOTALL)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with the examples, in which the test runs."""
    (tmp_path / "examples").symlink_to(ROOT / "engine" / "examples")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_the_examples_of_the_page_run_one_after_the_other(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "python.md").read_text("utf-8")
    blocks = BLOCK.findall(page)
    names: dict[str, Any] = {}

    for block in blocks:
        exec(compile(block, "docs/python.md", "exec"), names)

    assert len(blocks) == 6
    assert len(re.findall("^```python", page, re.MULTILINE)) == 7
    told = capsys.readouterr().out
    assert "<TalkingVideo 160x96, 24 frames at 25" in told
    assert "audio: samples need their rate" in told
    assert {"talk.mp4", "regions.png"} <= {path.name for path in place.iterdir()}


@pytest.mark.slow
def test_the_notebook_runs_and_its_video_plays(place: Path) -> None:
    import nbformat
    from nbclient import NotebookClient

    notebook: Any = nbformat.reads((ROOT / "docs" / "talker.ipynb").read_text("utf-8"), as_version=4)  # type: ignore[no-untyped-call]
    # Outputs are not kept: they would change with every version.
    assert all(cell.outputs == [] for cell in notebook.cells if cell.cell_type == "code")

    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(place)}}).execute()

    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    shown = "".join(str(output.get("data", {}).get("text/html", "")) for output in outputs)
    assert shown.count("data:video/mp4;base64,") == 2
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert (place / "two.mp4").stat().st_size > 1000
