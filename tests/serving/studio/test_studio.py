"""The studio without its page: the embedded engine makes videos of forms, and the history keeps them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine import EngineService
from engine.client import ClientError
from engine.client.answers import Status
from engine.errors import ConfigError
from engine.serving.studio.backend import RemoteBackend
from engine.serving.studio.examples import EXAMPLES
from engine.serving.studio.fields import FieldError
from engine.serving.studio.history import RUNNING, History
from engine.serving.studio.plan_table import plan_html
from engine.serving.studio.recipe import form_of
from engine.serving.studio.studio import Studio
from engine.stages.write import read_provenance
from plugins.entrypoints.ui import Ui, UiConfig

#: Nine frames in one window.
SHORT = replace(EXAMPLES[0].form(), seconds=0.36)


class _Server(Ui):
    """The entrypoint's own backend, without its server."""

    def backend(self, folder: Path) -> Any:
        return self._backend(EngineService(["device=cpu"]), folder)


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    folder = tmp_path_factory.mktemp("history")
    with _Server(UiConfig(defaults_of="model")).backend(folder) as backend:
        made = Studio(backend, History(folder), every=0.05)
        yield made
        made.close()


def ended(studio: Studio, name: str) -> dict[str, Any]:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        view = studio.view(name)
        assert view is not None
        if view["final"]:
            return view
        time.sleep(0.05)
    raise AssertionError(view)


@pytest.fixture(scope="module")
def made(studio: Studio) -> str:
    name = studio.make(SHORT)
    assert ended(studio, name)["error"] == ""
    return name


def test_a_video_of_a_form_is_made_and_kept_with_its_recipe(studio: Studio, made: str) -> None:
    view = studio.view(made)
    assert view is not None
    assert (view["word"], view["video"], view["retakes"]) == ("Done", True, True)
    assert "9 frames, seed 7" in view["detail"]
    assert view["report"]["windows"][0]["window"] == 1
    video = studio.history.path(made, "video.mp4")
    form, _ = form_of(read_provenance(video))
    assert (form.prompt, form.seed, form.seconds, form.turbo) == (SHORT.prompt, 7.0, 0.36, True)
    # Nothing of this machine is in what the page gets.
    assert str(studio.history.root) not in json.dumps(view)
    assert "/" not in json.dumps([view["detail"], view["warnings"], view["error"]])
    assert "picture.png" in view["code"]["Command line"]
    assert studio.history.path(made, "thumb.jpg").is_file()


def test_the_history_survives_a_restart_and_an_interrupted_job_says_so(studio: Studio, made: str) -> None:
    interrupted = studio.history.add(SHORT.settings(), SHORT.media())
    assert interrupted.state == RUNNING
    again = Studio(studio.backend, History(studio.history.root))
    first, second = again.view(made), again.view(interrupted.id)
    assert first is not None
    assert second is not None
    assert first["video"]
    assert (second["word"], second["final"]) == ("Stopped", True)
    assert "stopped" in second["error"]
    again.remove(interrupted.id)
    assert again.view(interrupted.id) is None


@pytest.mark.slow
def test_a_window_is_made_again_with_another_seed(studio: Studio, made: str) -> None:
    name = studio.retake(made, 1, 5)
    view = ended(studio, name)
    assert (view["error"], view["of"], view["window"]) == ("", made, 1)
    old, new = (studio.history.path(one, "video.mp4").read_bytes() for one in (made, name))
    assert old != new
    assert read_provenance(studio.history.path(name, "video.mp4"))["made_again"]
    with pytest.raises(FieldError, match="windows 1 to 1"):
        studio.retake(made, 2)
    with pytest.raises(FieldError, match="no windows"):
        studio.retake(name, 1)


def test_a_job_is_cancelled_while_it_waits_or_runs(studio: Studio) -> None:
    running = studio.make(replace(SHORT, seconds=8.0, turbo=False))
    waiting = studio.make(SHORT)
    studio.cancel(waiting)
    end = time.monotonic() + 60
    while "making" not in studio.view(running)["detail"] and time.monotonic() < end:  # type: ignore[index]
        time.sleep(0.02)
    studio.cancel(running)
    assert [ended(studio, one)["word"] for one in (waiting, running)] == ["Cancelled", "Cancelled"]
    assert not studio.history.path(running, "video.mp4").exists()


def test_the_plan_moves_with_the_settings_and_knows_the_time_of_an_earlier_video(studio: Studio, made: str) -> None:
    plan = studio.plan(SHORT)
    assert (plan["frames"], plan["forwards"]) == (9, 5)
    longer = studio.plan(replace(SHORT, seconds=None, turbo=False))
    assert longer["forwards"] > 5
    assert longer["seconds"] == pytest.approx(2.77, abs=0.02)
    rate = studio.rate("tiny", "small")
    assert rate is not None
    assert rate > 0
    assert studio.rate("tiny", "large") is None
    text = plan_html(plan, rate)
    assert "9 frames at 25 per second" in text
    assert "Time here" in text
    assert "$" in text
    assert str(studio.history.root) not in text
    assert not list(studio.history.root.glob(".plan-*"))


def test_what_the_engine_refuses_is_told_at_the_field_of_the_form(studio: Studio, tmp_path: Path) -> None:
    broken = tmp_path / "voice.wav"
    broken.write_bytes(b"this is no sound at all")
    people = (replace(SHORT.people[0], audio=str(broken)),)
    with pytest.raises(FieldError) as error:
        studio.plan(replace(SHORT, people=people))
    assert error.value.field == "voice1"
    assert str(tmp_path) not in error.value.text
    assert str(studio.history.root) not in error.value.text
    view = ended(studio, studio.make(replace(SHORT, people=people)))
    assert (view["word"], view["field"]) == ("Failed", "voice1")
    assert str(studio.history.root) not in view["error"]
    with pytest.raises(FieldError) as error:
        studio.plan(replace(SHORT, resolution="gigantic"))
    assert error.value.field == "resolution"


@pytest.mark.parametrize("name", ["../x", "", "0" * 15, "0" * 16, "x" * 16, "/etc/passwd"])
def test_names_of_no_entry_are_none(studio: Studio, name: str) -> None:
    assert studio.view(name) is None
    assert studio.live_file(name, "index.m3u8") is None
    studio.remove(name)
    studio.cancel(name)


def test_only_files_of_a_published_video_are_served(studio: Studio, made: str, tmp_path: Path) -> None:
    folder = tmp_path / "live"
    folder.mkdir()
    for name in ("index.m3u8", "init.mp4", "part-00000.m4s", "secret.txt"):
        (folder / name).touch()
    output = {"live": {"playlist": str(folder / "index.m3u8")}}
    studio._statuses[made] = Status(id=made, state="IN_PROGRESS", output=output)
    for name in ("index.m3u8", "init.mp4", "part-00000.m4s"):
        assert studio.live_file(made, name) == folder / name
    for wrong in ("../index.m3u8", "secret.txt", "index.m3u8/..", "part-00001.m4s", ""):
        assert studio.live_file(made, wrong) is None
    del studio._statuses[made]


def test_a_broken_entry_is_left_out(studio: Studio) -> None:
    folder = studio.history.root / ("0" * 16)
    folder.mkdir()
    for text in ("{", "[]", "null", '{"id": 1}', "[" * 10_000):
        (folder / "entry.json").write_text(text, "utf-8")
        assert studio.history.get(folder.name) is None
    assert all(entry.id != folder.name for entry in studio.history.newest())


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"host": "0.0.0.0"}, "entrypoint.host"),
        ({"host": "::"}, "entrypoint.host"),
        ({"password": ""}, "entrypoint.password"),
        ({"worker": "ftp://x/v2/local"}, "entrypoint.worker"),
        ({"worker": "http://name:secret@host/v2/local"}, "entrypoint.worker"),
        ({"worker": "http:///v2/local"}, "entrypoint.worker"),
        ({"worker": "http://host/v2/local?key=x"}, "entrypoint.worker"),
    ],
)
def test_a_studio_that_others_reach_needs_a_password_and_a_worker_an_address(
    values: dict[str, Any], field: str
) -> None:
    with pytest.raises(ConfigError) as error:
        Ui(UiConfig(**{"password": None} | values))
    assert error.value.field == field
    assert "\n" not in str(error.value)
    assert "secret" not in str(error.value)
    Ui(UiConfig(host="0.0.0.0", password="x"))


@pytest.mark.parametrize("url", ["http://host:8000", "http://host:8000/", "http://host:8000/v2/local/"])
def test_the_address_that_an_endpoint_prints_is_one_of_a_worker(url: str) -> None:
    server = _Server(UiConfig(worker=url, password=None))
    with server.backend(Path()) as backend:
        assert backend.endpoint == "http://host:8000/v2/local"
        backend.close()


def test_a_worker_elsewhere_makes_the_video(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    pytest.importorskip("runpod")
    from running_endpoint import running

    with running(api_key="key of the worker") as server:
        base, name = server.endpoint.base_url, server.endpoint.endpoint_id
        backend = RemoteBackend(base, name, "key of the worker")
        studio = Studio(backend, History(tmp_path / "history"), every=0.05)
        view = ended(studio, studio.make(EXAMPLES[0].form()))
        assert view["word"] == "Done"
        assert studio.history.path(view["id"], "video.mp4").stat().st_size > 0
        assert not view["retakes"]
        assert f"{base}/{name}/run" in view["code"]["curl"]
        kept = "".join(path.read_text("utf-8") for path in (tmp_path / "history").glob("*/entry.json"))
        assert "key of the worker" not in kept + json.dumps(view)
        large = tmp_path / "large.wav"
        large.write_bytes(bytes(8_000_000))
        with pytest.raises(FieldError, match="7 MB") as error:
            studio.make(replace(EXAMPLES[0].form(), people=(replace(SHORT.people[0], audio=str(large)),)))
        assert error.value.field == "voice1"
        studio.close()
    gone = RemoteBackend(base, name, None)
    with pytest.raises(ClientError):
        gone.status("a")
    gone.close()
