"""The page of a sweep: what it shows, that nothing in a config can act on it, and that it works in a browser."""

from __future__ import annotations

import asyncio
import json
import os
import random
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from browser import CHROMIUM, Browser, opened

from engine.cli.main import main
from engine.data import Frames
from engine.stages.write import Writer
from engine.sweeps.page import render
from engine.sweeps.runs import FORMAT, Run, differing, read_runs

HOSTILE = "</script><img src=x onerror=alert(1)>\"'&{{ 7 * 7 }}{% if %}"


def run(folder: Path, number: int, **changes: Any) -> Path:
    """Write what a run leaves, but for the video."""
    path = folder / str(number)
    path.mkdir(parents=True)
    told = {
        "format": FORMAT,
        "run": number,
        "overrides": {"sampler": "euler", "sampler.steps": number},
        "status": "done",
        "error": None,
        "video": "talk.mp4",
        "forwards": 10 + number,
        "bytes": 1000,
        "timings": {"load": 1.0, "denoise": 3.0 - number, "total_without_load": 5.0},
        "measures": {
            "seam_ratio": {"value": None, "reason": "one window has no seam"},
            "lab_drift": {"value": None, "reason": "shorter than two seconds"},
            "lip_sync": {"value": 0.5 + number / 10, "reason": None},
            "lip_lag": {"value": -number, "reason": None},
        },
    }
    (path / "config.yaml").write_text("model: {}\n")
    (path / "metrics.json").write_text(json.dumps(told | changes))
    return path


class Parsed(HTMLParser):
    """The tags of a page with their attributes, and the text within its table."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def page(folder: Path) -> Parsed:
    assert main(["compare", str(folder)]) == 0
    return Parsed((folder / "index.html").read_text("utf-8"))


def test_runs_come_in_the_order_of_their_numbers_and_with_what_differs(tmp_path: Path) -> None:
    for number in (10, 2, 1):
        run(tmp_path, number)
    runs = read_runs(tmp_path)
    assert [made.name for made in runs] == ["1", "2", "10"]
    assert differing(runs) == ["sampler.steps"]


def test_sweeps_below_one_folder_are_compared_together(tmp_path: Path) -> None:
    run(tmp_path / "one", 0)
    run(tmp_path / "two", 0, overrides={"sampler": "turbo", "sampler.steps": 0})
    runs = read_runs(tmp_path)
    assert [made.name for made in runs] == ["one/0", "two/0"]
    assert differing(runs) == ["sampler"]


def test_the_best_value_of_each_column_is_marked(tmp_path: Path) -> None:
    for number in (0, 1, 2):
        run(tmp_path, number)
    text = render("x", read_runs(tmp_path))
    # Fewest forwards, quickest, best sync, least lag; nothing where all are alike, and nothing of the file's size.
    assert text.count('class="number best"') == 4
    for best in ("10", "1.00", "0.70", "0"):
        assert f"★ {best}</td>" in text


def test_what_misses_its_bar_is_marked_and_the_bar_is_stated(tmp_path: Path) -> None:
    good = {"identity": {"value": 0.2, "reason": None, "holds": True}}
    bad = {"identity": {"value": 0.8, "reason": None, "holds": False}}
    run(tmp_path, 0, measures=good)
    run(tmp_path, 1, measures=bad)
    # Of photographs nobody knows what is right.
    run(tmp_path, 2, measures={"identity": {"value": 0.9, "reason": None}})
    text = render("x", read_runs(tmp_path))
    assert "★ 0.20</td>" in text
    assert 'class="number missed"' in text
    assert text.count("✗ 0.80</td>") == 1
    assert "✗ 0.90" not in text
    assert "bar for drawn people: &lt;= 0.45" in text


def test_a_measure_without_a_value_says_why(tmp_path: Path) -> None:
    run(tmp_path, 0)
    text = " ".join(page(tmp_path).text)
    assert "not measured: one window has no seam" in text


def test_failed_and_unfinished_runs_are_shown_with_their_errors(tmp_path: Path) -> None:
    run(tmp_path, 0)
    run(tmp_path, 1, status="failed", error={"code": "bad_request", "message": "request.fps: no such rate"}, video=None)
    run(tmp_path, 2, status="unfinished", video=None)
    (run(tmp_path, 3) / "metrics.json").write_text("{")
    text = " ".join(page(tmp_path).text)
    assert "4 runs: 1 done, 2 failed, 1 unfinished." in text
    assert "failed: request.fps: no such rate" in text
    assert "unfinished: it is still running" in text
    assert "its metrics.json cannot be read" in text


def test_text_from_a_run_is_text_on_the_page(tmp_path: Path) -> None:
    for number in (0, 1):
        overrides = {HOSTILE: f"{HOSTILE}{number}", "request.prompt": f"{number} {HOSTILE}"}
        made = run(tmp_path / "<b>", number, overrides=overrides, video=f"{number} '\"%#?.mp4")
        (made / f"{number} '\"%#?.mp4").write_bytes(b"")
    run(tmp_path / "<b>", 2, status="failed", error={"message": HOSTILE})
    parsed = page(tmp_path / "<b>")
    assert not parsed.all("img")
    assert not parsed.all("b")
    assert len(parsed.all("script")) == 1
    assert {name for _, attributes in parsed.tags for name in attributes if name.startswith("on")} == set()
    assert "".join(parsed.text).count(HOSTILE) >= 6
    assert [video["src"] for video in parsed.all("video")] == [f"{n}/{n}%20%27%22%25%23%3F.mp4" for n in (0, 1)]


@pytest.mark.parametrize("field", ["page", "name", "error", "video", "overrides", "reasons"])
def test_no_field_of_a_run_becomes_part_of_the_page_itself(field: str) -> None:
    page, runs = "sweep", [Run("0", "done", overrides={"a": 1}), Run("1", "done", overrides={"a": 2})]
    changed: dict[str, dict[str, Any]] = {
        "name": {"name": HOSTILE},
        "error": {"status": "failed", "error": HOSTILE},
        "video": {"video": HOSTILE},
        "overrides": {"overrides": {HOSTILE: HOSTILE}},
        "reasons": {"reasons": {"bytes": HOSTILE}},
    }
    plain = Parsed(render(page, runs))
    page, runs[1] = (HOSTILE, runs[1]) if field == "page" else (page, replace(runs[1], **changed[field]))
    text = render(page, runs)
    parsed = Parsed(text)
    assert HOSTILE not in text
    assert HOSTILE in "".join(parsed.text) or parsed.all("video")[0]["src"] == "1/" + quote(HOSTILE)
    known = {tag for tag, _ in plain.tags} | {"video", "a", "strong", "dt", "dd", "dl"}
    assert {tag for tag, _ in parsed.tags} <= known
    assert not {name for _, attributes in parsed.tags for name in attributes if name.startswith("on")}


def test_a_video_elsewhere_is_not_linked(tmp_path: Path) -> None:
    (tmp_path / "secret.mp4").write_bytes(b"")
    run(tmp_path / "sweep", 0, video="../../secret.mp4")
    assert not page(tmp_path / "sweep").all("video")


def test_the_page_needs_nothing_from_elsewhere() -> None:
    text = render("x", [Run("0", "done")])
    assert "http:" not in text
    assert "https:" not in text
    assert {tag for tag, attributes in Parsed(text).tags if "src" in attributes or tag == "link"} == set()


@pytest.mark.parametrize(("name", "told"), [("none", "is not a folder"), (".", "contains no runs")])
def test_a_folder_without_runs_is_an_error_in_one_line(
    name: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", str(tmp_path / name)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line


# --- in a browser -----------------------------------------------------------------------------------------------------

TABLE = "[...document.querySelectorAll('tbody tr:not([hidden])')].map((row) => row.cells[0].innerText)"
VIDEOS = "[...document.querySelectorAll('figure:not([hidden])')].map((card) => card.dataset.run)"


def head(title: str) -> str:
    return f"[...document.querySelectorAll('thead button')].find((b) => b.innerText === '{title}')"


async def use(tab: Browser) -> dict[str, Any]:
    told: dict[str, Any] = {}
    loaded = "[...document.querySelectorAll('video')].map((video) => video.error ? 'error' : video.readyState)"
    await tab.until(f"document.readyState === 'complete' && {loaded}.every((s) => s === 'error' || s === 4)")
    told["loaded"] = await tab.run(loaded)
    told["unplayable"] = await tab.run("document.querySelectorAll('.unplayable:not([hidden])').length")
    await tab.run(f"{head('Lip sync')}.click()")
    told["rising"] = await tab.run(TABLE)
    await tab.run(f"{head('Lip sync')}.click()")
    told["falling"], told["cards"] = await tab.run(TABLE), await tab.run(VIDEOS)
    told["sort"] = await tab.run(f"{head('Lip sync')}.closest('th').getAttribute('aria-sort')")
    await tab.run("document.getElementById('play').click()")
    times = "[...document.querySelectorAll('video')].filter((v) => !v.error).map((v) => v.currentTime)"
    together = "(t => t.every((time) => time > 0.3) && Math.max(...t) - Math.min(...t) < 0.3)"
    told["times"] = await tab.until(f"{together}({times})", times)
    told["muted"] = await tab.run("[...document.querySelectorAll('video')].every((video) => video.muted)")
    told["label"] = await tab.run("document.getElementById('play').innerText")
    await tab.run("document.getElementById('play').click()")
    told["paused"] = await tab.run("[...document.querySelectorAll('video')].every((video) => video.paused)")
    for field, value in (("words", "STEPS-2"), ("filter-1", "1")):
        change = f"{{ const f = document.getElementById('{field}'); f.value = '{value}'; "
        await tab.run(change + "f.dispatchEvent(new Event('input', { bubbles: true })); }")
        told[field] = await tab.run(TABLE), await tab.run(VIDEOS)
        await tab.run("document.getElementById('words').value = ''")
    told["shown"] = await tab.run("document.getElementById('shown').innerText")
    return told


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_videos_play_together_and_the_table_sorts_and_filters(tmp_path: Path) -> None:
    sweep = tmp_path / "a sweep"
    for number in (0, 1, 2):
        made = run(sweep, number, overrides={"sampler.steps": number, "note": f"steps-{number}"})
        with Writer(made / "talk.mp4", (64, 48), 25) as writer:
            writer.add(Frames(np.random.default_rng(number).integers(0, 255, (50, 48, 64, 3), np.uint8), 25))
            writer.finish()
    (run(sweep, 3) / "talk.mp4").write_bytes(b"no video")
    run(sweep, 4, status="failed", error={"message": "no memory"}, video=None)
    page(sweep)
    told = asyncio.run(opened((sweep / "index.html").as_uri(), tmp_path / "browser", use))
    assert told["loaded"] == [4, 4, 4, "error"]
    assert told["unplayable"] == 1
    assert told["rising"] == ["0", "1", "2", "3", "4"]
    # What has no figure comes last either way.
    assert told["falling"] == told["cards"] == ["3", "2", "1", "0", "4"]
    assert told["sort"] == "descending"
    assert len(told["times"]) == 3
    assert (told["muted"], told["label"], told["paused"]) == (True, "Pause all", True)
    assert told["words"] == (["2"], ["2"])
    assert told["filter-1"] == (["1"], ["1"])
    assert told["shown"] == "1 of 5 runs are shown."


#: What a stranger's metrics.json may hold in place of the usual, and what is shown of its run.
STRANGE: dict[str, str] = {
    "a number too large": '{"format": 1, "overrides": {"a": 1}, "status": "done", "video": null, "bytes": 1'
    + "0" * 400
    + "}",
    "a number too long": '{"format": 1, "overrides": {}, "status": "done", "video": null, "bytes": ' + "9" * 5000 + "}",
    "no number": '{"format": 1, "overrides": {}, "status": "done", "video": null, "bytes": NaN, "forwards": Infinity}',
    "a deep value": '{"format": 1, "status": "done", "video": null, "overrides": ' + "[" * 90_000 + "]" * 90_000 + "}",
    "a deep override": '{"format": 1, "status": "done", "video": null, "overrides": {"a": '
    + "[" * 400
    + "]" * 400
    + "}}",
    "half a character": '{"format": 1, "overrides": {"a\\ud800": "\\udcff"}, "status": "done", "video": "\\ud800.mp4"}',
    "half a character told": '{"format": 1, "overrides": {}, "status": "failed", "error": {"message": "\\ud800"}}',
    "a terminal's commands": '{"format": 1, "overrides": {"a": "\\u001b[2J\\u202e"}, "status": "\\u001b[2J"}',
    "no object": "[1]",
    "no JSON": "\x00",
    "nothing": "",
    "a format of its own": '{"format": {"x": ["\\u001b"]}}',
    "a list for texts": '{"format": 1, "overrides": [["a", [1]]], "status": [1], "error": [1], "video": [1]}',
    "a wrong video": '{"format": 1, "overrides": {}, "status": "done", "video": "../../../etc/passwd"}',
    "a video of another type": '{"format": 1, "overrides": {}, "status": "done", "video": {"a": 1}}',
}


@pytest.mark.parametrize("name", STRANGE)
def test_a_strange_run_is_a_line_of_the_page_and_the_others_stay(name: str, tmp_path: Path) -> None:
    run(tmp_path, 1)
    run(tmp_path, 2)
    (run(tmp_path, 3) / "metrics.json").write_text(STRANGE[name], "utf-8")

    parsed = page(tmp_path)

    text = (tmp_path / "index.html").read_text("utf-8")
    assert "\x1b" not in text
    assert "\u202e" not in text
    rows = [attributes["data-run"] for attributes in parsed.all("tr") if "data-run" in attributes]
    assert rows == ["1", "2", "3"]
    assert not [source for video in parsed.all("video") if "passwd" in (source := str(video["src"]))]


def test_folders_that_are_no_text_are_linked_as_they_are(
    tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    sweep = Path(os.fsdecode(os.fsencode(tmp_path) + b"/sweep-\xff"))
    path = run(sweep, 1)
    other = path.rename(path.with_name(os.fsdecode(b"run-\xe9-\xc2\xb2")))
    (other / "talk.mp4").write_bytes(b"x")

    parsed = page(sweep)

    # Read here: processes of a parallel test run cannot hand each other such a name.
    assert capsysbinary.readouterr().out == os.fsencode(sweep / "index.html") + b"\n"
    (video,) = parsed.all("video")
    assert video["src"] == "run-%E9-%C2%B2/talk.mp4"
    assert r"run-\udce9-²" in (sweep / "index.html").read_text("utf-8")


def test_mutated_figures_never_stop_the_page(tmp_path: Path) -> None:
    dice = random.Random(5)
    usual = json.loads((run(tmp_path, 0) / "metrics.json").read_text())
    values: list[Any] = [None, True, -1, 10**400, 1e308, "", "\ud800", "\x1b[2J", [], {}, [1], {"value": "x"}, "../x"]
    for number in range(1, 300):
        told: Any = json.loads(json.dumps(usual))
        for _ in range(dice.randint(1, 3)):
            groups = [told, told.get("measures"), told.get("timings")]
            owner = dice.choice([group for group in groups if isinstance(group, dict)])
            owner[dice.choice([*owner, "other"])] = dice.choice(values)
        path = run(tmp_path, number) / "metrics.json"
        path.write_text(json.dumps(told), "utf-8")

    rows = [attributes["data-run"] for attributes in page(tmp_path).all("tr") if "data-run" in attributes]

    assert len(rows) == 300
