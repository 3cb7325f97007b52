"""Voices of the studio's page in a real browser: a script, a recording with channels, and one with found speakers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, opened
from studio_page import (
    CHANNELS,
    DONE,
    EXAMPLES,
    FOUND,
    READY,
    SCRIPT,
    example,
    give,
    needs_browser,
    set_length,
    studio,
    type_in,
    voices_from,
)

pytest.importorskip("gradio", reason="needs Gradio: nox -s studio installs it in an environment of its own")
pytestmark = needs_browser
SAID = "Anna: Hello.\nBen: Yes."
#: What a field tells people who cannot see it: whether it is wrong, and the text that says why.
TOLD = """[...document.querySelectorAll('[aria-invalid=true]')].map((one) =>
  [one.tagName, document.getElementById(one.getAttribute('aria-describedby')).innerText.trim()])"""
NAMES = "[...document.querySelectorAll('#boxes .names input')].map((one) => one.value)"


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("history")


@pytest.fixture(scope="module")
def url(history: Path) -> Iterator[str]:
    with studio(history, "device=cpu") as address:
        yield address


def newest(history: Path) -> dict[str, Any]:
    entries = [json.loads(path.read_text("utf-8")) for path in history.glob("*/entry.json")]
    found: dict[str, Any] = max(entries, key=lambda entry: entry["created"])
    return found


async def make(tab: Browser) -> None:
    # The newest values are on their way.
    await asyncio.sleep(1)
    await tab.run("document.querySelector('#make').click()")


async def spoken(tab: Browser) -> dict[str, Any]:
    await tab.until(READY)
    await give(tab, "#picture", EXAMPLES / "two.png")
    await tab.until("document.querySelectorAll('#boxes .box').length === 2")
    await voices_from(tab, SCRIPT)
    await type_in(tab, "#prompt textarea", "Two people talk.")
    await make(tab)
    empty = await tab.until("document.querySelector('[aria-invalid=true]')", TOLD)
    focused = await tab.until("document.activeElement.matches('#script textarea')")
    await type_in(tab, "#script textarea", SAID)
    await tab.until(f'JSON.stringify({NAMES}) === \'["Anna","Ben"]\'')
    cast = await tab.until(
        "document.querySelector('#cast p')?.innerText.includes('Ben')", "document.querySelector('#cast p').innerText"
    )
    plan = await tab.until(
        "document.querySelector('#plan')?.innerText.includes('2 turns')",
        "document.querySelector('#plan').textContent",
    )
    await tab.run("document.querySelector('#turbo input').click()")
    await make(tab)
    await tab.until(DONE)
    return {"empty": empty, "focused": focused, "cast": cast.strip(), "plan": plan, "left": await tab.run(TOLD)}


def test_a_script_is_spoken_by_the_people_who_are_found(url: str, history: Path, tmp_path: Path) -> None:
    told = asyncio.run(opened(url, tmp_path / "browser", spoken))
    assert told["empty"] == [["TEXTAREA", "Write a script, with lines such as: Anna: Hello."]]
    assert told["focused"]
    assert told["cast"] == "From left to right: Anna, Ben."
    assert "Yes." in told["plan"]
    assert told["left"] == []
    entry = newest(history)
    first, second, *said = entry["job"]["script"].splitlines()
    assert "\n".join(said) == SAID
    assert first.startswith("@Anna box=0,")
    assert second.startswith("@Ben box=0.")
    assert (history / entry["id"] / "video.mp4").stat().st_size > 0


async def on_channels(tab: Browser) -> dict[str, Any]:
    await example(tab, 1)
    await voices_from(tab, CHANNELS)
    await make(tab)
    empty = await tab.until("document.querySelector('[aria-invalid=true]')", TOLD)
    await give(tab, "#recording", EXAMPLES / "call.flac")
    await tab.until("document.querySelector('#plan table')")
    await set_length(tab, "0.4")
    await tab.until("document.querySelector('#plan').innerText.includes('0.40 s')")
    await make(tab)
    await tab.until(DONE)
    return {"empty": empty}


def test_people_of_one_recording_have_a_channel_each(url: str, history: Path, tmp_path: Path) -> None:
    told = asyncio.run(opened(url, tmp_path / "browser", on_channels))
    assert told == {"empty": [["BUTTON", "Add the recording in which each person has a channel."]]}
    entry = newest(history)
    assert [one["channel"] for one in entry["job"]["speakers"]] == [1, 2]
    assert "recording.flac" in json.dumps(entry["job"])


async def found(tab: Browser) -> dict[str, Any]:
    await example(tab, 1)
    await voices_from(tab, FOUND)
    await give(tab, "#recording", EXAMPLES / "call.flac")
    await tab.until("document.querySelector('#plan')?.innerText.includes('Who speaks when')")
    # Who speaks first is the person on the right.
    for number, word in ((1, "second"), (2, "first")):
        await tab.run(f"document.querySelector('#channel{number} input').focus()")
        options = "[...document.querySelectorAll('ul[role=listbox] li')]"
        option = f"{options}.find((one) => one.innerText.includes('{word}'))"
        await tab.until(option)
        await tab.run(f"{option}.dispatchEvent(new MouseEvent('mousedown', {{bubbles: true}}))")
        await asyncio.sleep(0.5)
    await set_length(tab, "0.4")
    await make(tab)
    await tab.until(DONE)
    return {}


@pytest.mark.skipif(
    any(find_spec(name) is None for name in ("resemblyzer", "silero_vad", "onnxruntime")), reason="needs [diarise]"
)
def test_the_speakers_of_one_recording_are_found(url: str, history: Path, tmp_path: Path) -> None:
    asyncio.run(opened(url, tmp_path / "browser", found))
    entry = newest(history)
    assert (entry["job"]["voices"], entry["job"]["people"]) == ("recording.flac", 2)
    right, left = entry["job"]["boxes"]
    assert left[0] < right[0]


async def wrong_steps(tab: Browser) -> dict[str, Any]:
    await example(tab, 0)
    await tab.run("document.querySelector('#more button').click()")
    await tab.until("document.querySelector('#steps input')")
    await type_in(tab, "#steps input", "1")
    # Closed again: the error opens them.
    await tab.run("document.querySelector('#more button').click()")
    await tab.until("document.querySelector('#steps input')?.offsetParent == null")
    await make(tab)
    wrong = await tab.until("document.querySelector('[aria-invalid=true]')", TOLD)
    return {"wrong": wrong, "shown": await tab.until("document.querySelector('#steps input')?.offsetParent")}


def test_an_error_opens_the_settings_that_it_is_in(url: str, tmp_path: Path) -> None:
    told = asyncio.run(opened(url, tmp_path / "browser", wrong_steps))
    assert told == {"wrong": [["INPUT", "Steps: give a number from 2 to 100."]], "shown": True}


def test_an_error_of_a_running_job_is_told_at_its_field(url: str, history: Path, tmp_path: Path) -> None:
    broken = tmp_path / "voice.wav"
    broken.write_bytes(b"this is no sound at all")

    async def fail(tab: Browser) -> dict[str, Any]:
        await tab.until(READY)
        await give(tab, "#picture", EXAMPLES / "one.png")
        await give(tab, "#voice1", broken)
        await type_in(tab, "#prompt textarea", "A woman speaks.")
        await tab.until("document.querySelector('#plan')?.innerText.includes('No plan yet')")
        await make(tab)
        at = await tab.until(
            "document.querySelector('#error-voice1 .error')", "document.querySelector('#error-voice1').innerText"
        )
        return {"at": at.strip(), "state": await tab.run("document.querySelector('#job-state').innerText")}

    told = asyncio.run(opened(url, tmp_path / "browser", fail))
    assert told["state"] == "Failed"
    assert told["at"] == newest(history)["error"]
    assert str(tmp_path) not in told["at"]


@pytest.mark.skipif(find_spec("resemblyzer") is not None, reason="[diarise] is installed")
def test_what_is_not_installed_is_not_offered(url: str, tmp_path: Path) -> None:
    async def read(tab: Browser) -> dict[str, Any]:
        await tab.until(READY)
        return {
            "offered": await tab.until(
                "document.querySelector('#source input')", "document.querySelector('#source').innerText"
            ),
            "note": await tab.until(
                "document.querySelector('#voices-note code')", "document.querySelector('#voices-note').innerText"
            ),
        }

    told = asyncio.run(opened(url, tmp_path / "browser", read))
    assert "is found" not in told["offered"]
    assert "pip install 'multitalk-engine[diarise]'" in told["note"]
