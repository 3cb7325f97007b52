"""What README and RunPod's Hub tell a user to start is started: the image's environment, the presets, the commands."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from dockerfiles import ROOT, environment, stages, values
from PIL import Image
from published_hub import small_hub

from engine.assembly.compose import compose
from engine.assembly.location import locate_weights
from engine.cli.main import main
from engine.hub.manifest import Manifest, read_manifest
from engine.service import EngineService
from engine.serving.worker.defaults import boot
from engine.serving.worker.fitness import checks
from engine.serving.worker.warm_engine import WarmEngine

if TYPE_CHECKING:
    from hub_server import HubServer

README = (ROOT / "README.md").read_text("utf-8")
DEPLOY = (ROOT / "docs" / "deploy.md").read_text("utf-8")
HUB: dict[str, Any] = json.loads((ROOT / ".runpod" / "hub.json").read_text("utf-8"))["config"]
HUB_TESTS: dict[str, Any] = json.loads((ROOT / ".runpod" / "tests.json").read_text("utf-8"))
IMAGE = environment("Dockerfile")
PRESETS = [pytest.param(preset, id=preset["name"]) for preset in HUB["presets"]]
#: Decimal gigabytes of the image itself, should they count as the container's disk: an assumption, its layers have not
#: been measured. CUDA's libraries, torch and Triton are most of it.
IMAGE_GB = 15
#: Bytes a second of a slow download, and seconds that checks, imports and reading take besides.
SLOW, BESIDES = 12e6, 400


def advised(text: str) -> set[str]:
    """Return the settings that a page shows as words: NAME=value, one or more."""
    return {found for found in re.findall(r"`((?:MULTITALK_[A-Z]+=\S+)+)`", text) if "…" not in found}


def told(words: str) -> dict[str, str]:
    return dict(word.split("=", 1) for word in shlex.split(words))


ADVICE = sorted(advised(README) | advised(DEPLOY))


def booted(variables: dict[str, str], *words: str) -> list[str]:
    return boot(["entrypoint=runpod", *words], {**IMAGE, **variables})


def test_pages_advise_the_try_out() -> None:
    assert "MULTITALK_OVERRIDES=model=tiny" in advised(README) & advised(DEPLOY)


@pytest.mark.parametrize("words", ADVICE)
def test_advised_setting_composes_in_the_image(words: str) -> None:
    config = compose(booted(told(words)))
    if config.model.packaged:
        from engine.plugin.manager import installed

        assert locate_weights(config, installed()).is_dir()
    else:
        assert read_manifest().preset_of(config.model.name, config.quant.name) is not None


def worker(variables: dict[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the image's command in the image's environment with `variables`, for a self-test."""
    command = json.loads(values(stages("Dockerfile")[-1], "CMD")[0])
    assert command[0] == "multitalk"
    known = {name: value for name, value in os.environ.items() if not name.startswith(("RUNPOD_", "MULTITALK_", "S3_"))}
    image = {name: value for name, value in IMAGE.items() if name != "PATH"}
    return subprocess.run(
        [sys.executable, "-m", "engine", *command[1:], "--test-input", '{"input": {"action": "selftest"}}'],
        env={**known, **image, **variables},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("words", [words for words in ADVICE if compose(booted(told(words))).model.packaged])
@pytest.mark.slow
def test_try_out_boots_loads_and_makes_a_video_in_the_images_environment(words: str, tmp_path: Path) -> None:
    done = worker(told(words), tmp_path)
    assert done.returncode == 0, done.stderr
    assert "cannot be loaded" not in done.stderr
    assert re.search(r'"message": "loaded in [\d.]+ s"', done.stderr)
    assert re.search(r"""['"]ok['"]: True""", done.stdout), done.stdout


def test_the_hubs_own_test_is_the_try_out() -> None:
    (test,) = HUB_TESTS["tests"]
    assert test["input"] == {"action": "selftest"}
    assert " ".join(f"{entry['key']}={entry['value']}" for entry in HUB_TESTS["config"]["env"]) in ADVICE


# --- RunPod's Hub -----------------------------------------------------------------------------------------------------


def given(preset: dict[str, Any]) -> dict[str, str]:
    """Return the environment of a worker that the Hub starts: the image's, the form's defaults, the preset's."""
    form = {entry["key"]: entry["input"]["default"] for entry in HUB["env"] if "default" in entry["input"]}
    return {name: str(value) for name, value in {**IMAGE, **form, **preset["defaults"]}.items()}


def weights(preset: dict[str, Any]) -> int:
    """Return the bytes that a preset downloads, by the manifest."""
    config = compose(boot(["entrypoint=runpod"], given(preset)))
    found = read_manifest().preset_of(config.model.name, config.quant.name)
    return 0 if found is None or config.model.packaged else found.size


def test_a_preset_gets_its_weights_where_no_volume_is() -> None:
    made = " ".join(values(stages("Dockerfile")[-1], "RUN"))
    folders = re.findall(r"install --directory --owner worker --group worker (\S+)", made)
    for preset in HUB["presets"]:
        if weights(preset):
            assert given(preset)["MODEL_PATH"] in folders
            assert "source.download=true" in given(preset)["MULTITALK_OVERRIDES"].split()


def test_the_containers_disk_holds_image_weights_and_a_job_and_passes_the_sdks_check() -> None:
    disk = HUB["containerDiskInGb"] * 1e9
    room = max(map(weights, HUB["presets"])) + IMAGE_GB * 1e9 + 2**30
    # The check of the disk comes after ours, which downloads.
    assert disk - room >= disk * float(IMAGE["RUNPOD_MIN_DISK_PERCENT"]) / 100
    assert disk - room >= 0.1 * max(map(weights, HUB["presets"]))


def test_a_worker_that_downloads_has_the_time_for_it() -> None:
    for preset in HUB["presets"]:
        if weights(preset):
            assert weights(preset) / SLOW + BESIDES <= int(given(preset)["RUNPOD_INIT_TIMEOUT"])
    (form,) = [entry["input"] for entry in HUB["env"] if entry["key"] == "RUNPOD_INIT_TIMEOUT"]
    assert all(form["min"] <= int(given(preset)["RUNPOD_INIT_TIMEOUT"]) <= form["max"] for preset in HUB["presets"])


def test_names_of_presets_say_how_much_they_download() -> None:
    for preset in HUB["presets"]:
        said = re.findall(r"downloads (\d+) GB", preset["name"])
        assert said == ([f"{weights(preset) / 1e9:.0f}"] if weights(preset) else [])


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[HubServer, Manifest]]:
    pytest.importorskip("torchao")
    with small_hub(["multitalk-int8", "infinitetalk-int8"], tmp_path_factory.mktemp("published")) as served:
        yield served


@pytest.fixture
def published(hub: tuple[HubServer, Manifest], monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """The hub on loopback, which publishes small files in the places of the real ones, and its manifest."""
    import engine.cli.models
    import plugins.sources.download
    import plugins.sources.hub

    server, manifest = hub
    monkeypatch.setenv("HF_ENDPOINT", server.hub)
    for module in (engine.cli.models, plugins.sources.download, plugins.sources.hub):
        monkeypatch.setattr(module, "read_manifest", lambda _=None: manifest)
    return server


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_starts_from_what_the_hub_gives(
    preset: dict[str, Any], published: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables = given(preset)
    # The image's file system, with the folders that the worker may write to and no volume.
    home = tmp_path / variables["MODEL_PATH"].strip("/")
    if "source.download=true" in variables["MULTITALK_OVERRIDES"]:
        home.mkdir(parents=True)
    monkeypatch.setenv("MODEL_PATH", str(home))
    published.rate = 2_000_000
    service = EngineService(boot(["entrypoint=runpod", "device=cpu"], variables))
    warm_engine = WarmEngine(service)
    try:
        # As `multitalk runpod` does: the weights are loaded while the checks run, which wait for the same download.
        warm_engine.warm()
        for check in checks(service):
            check()
        warm_engine.wait_until_ready(threading.Event())
        assert warm_engine.error is None
        assert warm_engine.state == "ready"
    finally:
        published.rate = 0
        warm_engine.close()
    if weights(preset):
        (folder,) = home.iterdir()
        assert (folder / "download_complete.txt").read_text().split()
        sent = {asked.path for asked in published.asked if asked.server == "cdn"}
        assert sent
    published.asked.clear()


def test_a_disk_that_is_too_small_is_one_clear_line(
    published: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODEL_PATH", str(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(60, 60, 0))
    service = EngineService(boot(["entrypoint=runpod", "device=cpu"], given(HUB["presets"][0])))
    problem = service.check()["failed"]["weights"]
    assert "multitalk-int8 needs" in problem
    assert "\n" not in problem


# --- a photograph in three commands -----------------------------------------------------------------------------------


def commands() -> list[str]:
    section = README.partition("## A photograph in three commands")[2].partition("\n## ")[0]
    (block,) = re.findall(r"^```bash\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    return [str(line) for line in block.splitlines()]


def test_three_commands_get_the_weights_look_and_plan(
    published: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    examples = Path(str(files("engine"))) / "examples"
    Image.open(examples / "one.png").convert("RGB").save("anna.jpg")
    shutil.copy(examples / "one.flac", "anna.flac")
    ran = []
    for line in commands():
        words = shlex.split(line)
        while "=" in words[0]:
            monkeypatch.setenv(*words.pop(0).split("=", 1))
        assert words.pop(0) == "multitalk"
        ran.append(words[0])
        # No card is here: the plan is what can be made, and doctor says that one is missing.
        status = main([*words, *(["--dry-run"] if words[0] == "generate" else [])])
        shown = capsys.readouterr().out
        if words[0] == "doctor":
            assert "complete in models/multitalk" in shown
        else:
            assert status == 0
        if words[0] == "generate":
            assert "models/multitalk" in shown
            assert "(turbo)" in shown
    assert ran == ["models", "doctor", "generate"]
