"""Every way in makes the same video of the same words, and docs/defaults.md says what each takes without them."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import hashlib
import json
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, Browser, opened
from running_endpoint import RunningEndpoint, running
from worker_fakes import ask

from engine import EngineService, Request, Speaker
from engine.assembly.compose import compose
from engine.cli.main import main
from engine.client import Client, talk
from engine.config import RequestConfig
from engine.data.budget import Budget
from engine.serving.endpoint.limits import EndpointLimits
from engine.serving.jobs.defaults import JobDefaults, input_defaults
from engine.serving.jobs.schema import JobLimits
from engine.serving.worker.handler import Handler, Terms
from engine.serving.worker.warm_engine import WarmEngine
from engine.stages.write import read_provenance
from plugins.entrypoints.batch import BatchConfig
from plugins.entrypoints.runpod import RunpodConfig

pytest.importorskip("aiohttp")
ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "engine" / "examples"
PROMPT = "a person talks"
#: What a job calls the settings; all of them are named.
ASKED: dict[str, Any] = {
    "num_frames": 9,
    "fps": 12.5,
    "seed": 7,
    "sampling_steps": 2,
    "guidance_scale": 2,
    "audio_guidance_scale": 3,
    "audio_type": "para",
    "resolution": "small",
}
#: Seconds; a busy machine imports torch for minutes.
PATIENCE = 1200.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the media, in an environment in which every process computes with as many threads as this one."""
    import torch

    place = tmp_path_factory.mktemp("doors")
    for name in ("one.png", "one.flac"):
        shutil.copy(EXAMPLES / name, place)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))
        yield place


@pytest.fixture(scope="module")
def house(folder: Path) -> Iterator[RunningEndpoint]:
    """An endpoint with a real worker of the embedded model."""
    command = [sys.executable, "-m", "engine", "runpod", "model=tiny", "device=cpu"]
    limits = EndpointLimits(execution_timeout=PATIENCE, start_timeout=PATIENCE)
    with running(worker=command, limits=limits) as made:
        yield made


@pytest.fixture(scope="module")
def wanted(folder: Path) -> bytes:
    """The video as the command line makes it."""
    words = ["--image", "one.png", "--audio", "one.flac", "--prompt", PROMPT, "--frames", "9", "--fps", "12.5"]
    words += ["--seed", "7", "--audio-type", "para", "--output", "line.mp4", "--quiet", "model=tiny", "device=cpu"]
    words += ["sampler.steps=2", "guidance.text_scale=2", "guidance.audio_scale=3", "resolution=small"]
    assert main(["generate", *words]) == 0
    return (folder / "line.mp4").read_bytes()


def told(answer: Mapping[str, Any]) -> bytes:
    assert "error" not in answer, answer
    return base64.b64decode(answer["video_base64"])


def test_python_makes_what_the_command_line_makes(folder: Path, wanted: bytes) -> None:
    service = EngineService(["model=tiny", "device=cpu", "sink=base64", "sampler.steps=2", "resolution=small"])
    scales = ("guidance.text_scale=2", "guidance.audio_scale=3")
    speakers = (Speaker("one.flac"),)
    request = Request(PROMPT, "one.png", speakers, seed=7, frames=9, fps=12.5, overrides=scales)
    try:
        delivery = service.generate(request)
    finally:
        service.close()
    assert hashlib.sha256(base64.b64decode(delivery.content or "")).digest() == hashlib.sha256(wanted).digest()


def test_a_job_makes_what_the_command_line_makes(folder: Path, wanted: bytes) -> None:
    service = EngineService(["model=tiny", "device=cpu", "sink=base64", "access.schemes=[data]"])
    handler = Handler(WarmEngine(service), Terms())
    try:
        answer = ask(handler, {**talk("one.png", "one.flac", prompt=PROMPT), **ASKED})
    finally:
        handler.warm_engine.close()
    assert told(answer) == wanted


@pytest.mark.slow
def test_a_batch_makes_what_the_command_line_makes(folder: Path, wanted: bytes) -> None:
    job = {"reference_image": "one.png", "audio_1": "one.flac", "prompt": PROMPT, **ASKED}
    (folder / "jobs.jsonl").write_text(json.dumps({"id": "one", "input": job}) + "\n")
    assert main(["batch", "jobs.jsonl", "model=tiny", "device=cpu", "sink.folder=films", "--quiet"]) == 0
    assert (folder / "films" / "one.mp4").read_bytes() == wanted


@pytest.mark.slow
def test_the_client_makes_what_the_command_line_makes(folder: Path, wanted: bytes, house: RunningEndpoint) -> None:
    with Client(house.endpoint.endpoint_id, api_key="any", base_url=house.endpoint.base_url) as client:
        sent = client.submit(talk("one.png", "one.flac", prompt=PROMPT, **ASKED))
        house.until(lambda: house.job(sent.id).final, PATIENCE)
        assert sent.download(folder / "client.mp4").path.read_bytes() == wanted


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_the_page_makes_what_the_command_line_makes(folder: Path, wanted: bytes, house: RunningEndpoint) -> None:
    async def use(tab: Browser) -> dict[str, Any]:
        await tab.until(
            "document.readyState === 'complete' && document.getElementById('health').innerText.includes('of')"
        )
        await tab.choose("picture", folder / "one.png")
        await tab.choose("voice1", folder / "one.flac")
        await tab.until("document.querySelector('#resolution option[value=small]') !== null")
        # The page asks for seconds.
        length = {"seconds": ASKED["num_frames"] / ASKED["fps"]}
        asked = {name: value for name, value in ASKED.items() if name != "num_frames"}
        for field, value in {**asked, **length, "prompt": PROMPT}.items():
            await tab.run(f"document.getElementById('{field}').value = {json.dumps(str(value))}")
        await tab.run("document.getElementById('send').click()")
        await tab.until("!document.getElementById('save').hidden || document.getElementById('failure').innerText")
        return {name: await tab.run(f"document.getElementById('{name}').innerText") for name in ("id", "failure")}

    shown = asyncio.run(opened(house.endpoint.url, folder / "browser", use))
    assert shown["failure"] == ""
    assert told(house.job(shown["id"]).output) == wanted


@pytest.mark.slow
def test_a_random_seed_is_told_in_answer_and_provenance_and_makes_the_same_again(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--image", "one.png", "--audio", "one.flac", "--prompt", PROMPT, "--frames", "5", "sampler.steps=1"]
    seeds = []
    for name in ("first.mp4", "second.mp4"):
        assert main(["generate", *words, "--seed", "-1", "--output", name, "--json", "--quiet", "model=tiny"]) == 0
        answer = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert answer["seed"] == answer["plan"]["seed"] == read_provenance(folder / name)["request"]["seed"] >= 0
        seeds.append(answer["seed"])
    assert seeds[0] != seeds[1]
    media = ["--image", "one.png", "--audio", "one.flac"]
    assert main(["again", "first.mp4", *media, "--output", "again.mp4", "--quiet"]) == 0
    assert (folder / "again.mp4").read_bytes() == (folder / "first.mp4").read_bytes()


# --- the page of defaults ---------------------------------------------------------------------------------------------


def number(value: float) -> str:
    return f"{value:g}" if value < 10**5 else str(value)


def of_model(pick: Any) -> str:
    """Say in the page's words what the two models take: the 14B one, and the embedded one where it differs."""
    real, tiny = (pick(compose([f"model={name}"]).model) for name in ("multitalk", "tiny"))
    return f"the model's: {real}" + ("" if tiny == real else f", `tiny` {tiny}")


def column(found: Mapping[str, Any] | None, budget: Budget) -> list[str]:
    """Return a column of the table: `found` are the defaults of a job, None where there are none."""
    asked = {"num_frames": "auto", "seed": RequestConfig().seed} if found is None else found
    rate = of_model(lambda model: number(model.fps))
    if "fps" in asked:
        assert "fps" not in input_defaults(inputs={"num_frames": "auto"})
        rate = f"{asked['fps']}; the model's with the length of the voices"
    turbo = of_model(lambda model: f"{model.turbo.steps}, {model.turbo.text_scale:g}, {model.turbo.audio_scale:g}")
    standard = {
        "sampling_steps": of_model(lambda model: str(model.standard.steps)),
        "guidance_scale": of_model(lambda model: number(model.standard.text_scale)),
        "audio_guidance_scale": of_model(lambda model: number(model.standard.audio_scale)),
    }
    return [
        "the voices'" if asked["num_frames"] == "auto" else f"{asked['num_frames']} frames",
        rate,
        *(str(asked.get(name, model)) for name, model in standard.items()),
        turbo,
        str(asked["seed"]),
        *(number(value) for value in (budget.frames, budget.seconds, budget.steps, budget.forwards)),
    ]


def test_the_table_of_defaults_is_what_the_code_takes() -> None:
    assert (Request("a", "b", ()).frames, Request("a", "b", ()).fps) == (RequestConfig().frames, RequestConfig().fps)
    assert Request("a", "b", ()).seed == RequestConfig().seed
    worker = JobLimits()
    for config in (RunpodConfig(), BatchConfig()):
        assert worker == JobLimits(config.max_frames, config.max_steps, config.max_seconds, config.max_forwards)
        assert JobDefaults(config.num_frames) == JobDefaults()
    helper = talk("data:,", "data:,", prompt=PROMPT)
    page = (ROOT / "engine" / "serving" / "endpoint" / "page.html").read_text("utf-8")
    shown = dict(re.findall(r'<input id="(\w+)" type="number"[^>]* value="([^"]*)"', page))
    assert shown == {"seed": str(input_defaults()["seed"])}
    narrow = Budget(**dataclasses.asdict(worker))
    columns = [
        column(None, Budget()),
        column(input_defaults(), narrow),
        column({**input_defaults(inputs=helper), "num_frames": helper["num_frames"]}, narrow),
        column(input_defaults(job_defaults=JobDefaults(source="model")), narrow),
    ]
    text = (ROOT / "docs" / "defaults.md").read_text("utf-8")
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")][1:]
    assert [row[1:] for row in rows] == [list(row) for row in zip(*columns, strict=True)]
    assert "docs/defaults.md" in (ROOT / "README.md").read_text("utf-8")
