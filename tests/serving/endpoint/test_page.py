"""The page at / in a real browser: a person fills it in, sees progress and gets the video."""

from __future__ import annotations

import ast
import asyncio
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, Browser, opened
from running_endpoint import running

EXAMPLES = Path(__file__).parents[3] / "engine" / "examples"
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")


async def fill(tab: Browser, *, seen: Path) -> dict[str, Any]:
    """Fill the page in; `seen` is made once it has shown progress, which the worker waits for."""
    await tab.until("document.readyState === 'complete' && document.getElementById('health').innerText.includes('of')")
    told: dict[str, Any] = {}
    await tab.run("document.getElementById('send').click()")
    told["asked"] = await tab.run("document.getElementById('picture-error').innerText")
    await tab.choose("picture", EXAMPLES / "one.png")
    await tab.choose("voice1", EXAMPLES / "one.flac")
    await tab.run("document.getElementById('prompt').value = 'A woman speaks.'")
    await tab.run("document.getElementById('seed').value = '7'")
    await tab.run("document.getElementById('send').click()")
    detail = "document.getElementById('detail').innerText"
    told["length"] = await tab.run("document.getElementById('length').innerText")
    told["progress"] = await tab.until(f"{detail}.includes('%')", detail)
    seen.touch()
    told["end"] = await tab.until("!document.getElementById('save').hidden", detail)
    told["source"] = await tab.run("document.getElementById('video').src.split(':')[0]")
    told["judged"] = await tab.run("document.getElementById('judged').innerText")
    cells = "(row) => Array.from(row.children, (one) => one.innerText)"
    told["rows"] = await tab.run(f"Array.from(document.querySelectorAll('#figures tr'), {cells})")
    told["bad"] = await tab.run("Array.from(document.querySelectorAll('#figures .error'), (one) => one.innerText)")
    told["why"] = await tab.run("document.querySelector('#figures [title]:not([title=\"\"])').title")
    told["warnings"] = await tab.run("document.getElementById('warnings').innerText")
    told["link"] = await tab.run(
        "new URLSearchParams(location.search).get('job') === document.getElementById('id').innerText"
    )
    told["curl"] = await tab.run("document.getElementById('curl').textContent")
    told["python"] = await tab.run("document.getElementById('python').textContent")
    # The address leads back to the job.
    await tab.call("Page.reload")
    await tab.until("document.getElementById('save') && !document.getElementById('save').hidden")
    told["again"] = await tab.run(detail)
    told["model"] = await tab.until(
        "document.getElementById('model').innerText", "document.getElementById('model').innerText"
    )
    names = "Array.from(document.getElementById('resolution').options, (one) => one.text)"
    told["resolutions"] = await tab.run(names)
    await tab.run("document.getElementById('seconds').value = '2'")
    await tab.run("document.getElementById('seconds').dispatchEvent(new Event('input'))")
    told["frames"] = await tab.run("document.getElementById('length').innerText")
    return told


def test_a_person_makes_a_video_with_the_page(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    with running(environment={"TALK_GATE": str(seen)}) as server:
        told = asyncio.run(opened(server.endpoint.url, tmp_path / "browser", partial(fill, seen=seen)))
    assert told["asked"] == "Choose a picture."
    assert told["length"] == "As long as the voices"
    assert told["progress"] == "50 %, stage denoise, step 5, steps 10"
    assert "12.5 s of video, 312 frames, seed 7" in told["end"]
    assert told["source"] == "blob"
    assert told["warnings"] == "this is no video"
    assert told["judged"] == "1 of 2 windows outside the limits, 1 made again"
    assert told["rows"] == [
        ["window", "seconds", "seam", "sharpness", "attempts"],
        ["limit", "", "≤ 3", "≥ 0.6, ≤ 1.5", ""],
        ["1", "0.0 – 3.2", "unknown", "0.812", "1"],
        ["2", "3.2 – 6.1", "7.5", "0.8", "2"],
    ]
    assert told["bad"] == ["7.5"]
    assert told["link"]
    assert told["again"] == told["end"]
    assert told["model"] == "Model: tiny, a small one that knows drawn people only"
    assert told["resolutions"] == ["small (the worker's)", "large", "small"]
    assert told["frames"] == "50 frames at 25 a second"
    assert "$(base64 < 'one.png' | tr -d '\\n')" in told["curl"]
    assert f"{server.url('run')} -H" in told["curl"]
    job = ast.parse(told["python"]).body[2]
    assert isinstance(job, ast.Assign)
    asked = eval(compile(ast.Expression(job.value), "job", "eval"), {"file": str})
    assert (asked["reference_image"], asked["audio_1"], asked["prompt"]) == ("one.png", "one.flac", "A woman speaks.")
    assert (asked["num_frames"], asked["seed"], asked["turbo"]) == ("auto", 7, False)
    assert told["why"] == "the first window"
