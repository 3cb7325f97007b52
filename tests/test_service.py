"""The service plans and answers about itself without weights, and loads them when a video is asked for."""

from __future__ import annotations

import gc
import subprocess
import sys
import textwrap
import weakref
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from example_request import REQUEST
from torch.nn import Parameter

from engine import Access, EngineService, Request
from engine.components import Service
from engine.errors import ConfigError, RequestError, SourceError
from plugins.speech.espeak import Espeak


def test_engine_service_is_a_service() -> None:
    assert isinstance(EngineService(), Service)


def test_plan_preview_check_and_capabilities_do_not_import_torch(tmp_path: Path) -> None:
    code = textwrap.dedent(
        f"""
        import sys
        from pathlib import Path
        from engine import EngineService, Request, Speaker
        service = EngineService()
        request = Request("hello", {REQUEST.image!r}, (Speaker({REQUEST.speakers[0].audio!r}),))
        service.plan(request), service.check(), service.capabilities()
        service.preview(request, Path({str(tmp_path / "who.png")!r}))
        assert "torch" not in sys.modules
        """
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (tmp_path / "who.png").stat().st_size > 0


def test_capabilities_list_only_voices_that_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    known = EngineService(["diariser=channels"]).capabilities()
    assert {"name": "channels", "by_channel": True} in known["diarisers"]
    assert known["diariser"] == "channels"
    packages = [find_spec(name) for name in ("resemblyzer", "silero_vad", "onnxruntime")]
    assert ({"name": "resemblyzer", "by_channel": False} in known["diarisers"]) is all(packages)

    def missing(_: Espeak) -> None:
        raise ConfigError("not installed")

    monkeypatch.setattr(Espeak, "check", lambda _: None)
    assert EngineService().capabilities()["speech"] == "espeak"
    monkeypatch.setattr(Espeak, "check", missing)
    assert EngineService().capabilities()["speech"] is None


def test_plan_and_delivery_agree(tmp_path: Path) -> None:
    service = EngineService([f"sink.folder={tmp_path}"])
    assert service.generate(REQUEST).plan == service.plan(REQUEST)


def test_check_is_healthy_with_packaged_weights() -> None:
    report = EngineService().check()
    assert report["healthy"]
    assert not report["loaded"]


def test_check_names_missing_weights_and_an_unusable_sink(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    report = EngineService([f"source.path={tmp_path}", "source=volume", f"sink.folder={tmp_path / 'file'}"]).check()
    assert not report["healthy"]
    assert any("tiny" in error for error in report["errors"])
    assert any("file" in error and "sink" in error for error in report["errors"])


def test_missing_weights_stop_a_generation_but_not_a_plan(tmp_path: Path) -> None:
    service = EngineService(["model=multitalk", "source=volume", f"source.path={tmp_path}"])
    assert service.plan(REQUEST).weights is None
    with pytest.raises(SourceError, match="multitalk"):
        service.generate(REQUEST)


def test_another_service_opens_beside_this_one(tmp_path: Path) -> None:
    service = EngineService([f"sink.folder={tmp_path}"])
    other = service.open(["resolution=large"])
    assert service.plan(REQUEST).canvas.target != other.plan(REQUEST).canvas.target
    assert other.config.sink == service.config.sink


def test_closed_service_loads_again_when_asked(tmp_path: Path) -> None:
    service = EngineService([f"sink.folder={tmp_path}"])
    service.generate(REQUEST)
    service.close()
    assert not service.check()["loaded"]
    service.generate(REQUEST)
    assert service.check()["loaded"]


def test_closed_service_gives_its_weights_back() -> None:
    def parameters() -> dict[int, Any]:
        return {id(found): weakref.ref(found) for found in gc.get_objects() if type(found) is Parameter}

    before = parameters()
    service = EngineService()
    service.load()
    weights = [found for key, found in parameters().items() if key not in before]
    assert len(weights) > 100
    # Circles of references hold some: nobody but `close` may be the one who breaks these.
    gc.disable()
    try:
        service.close()
        assert not [found() for found in weights if found() is not None]
    finally:
        gc.enable()


def test_access_bounds_what_a_request_may_reach(tmp_path: Path) -> None:
    service = EngineService(access=Access(folders=(tmp_path,)))
    with pytest.raises(RequestError) as caught:
        service.plan(REQUEST)
    assert caught.value.field == "request.image"
    assert str(tmp_path) in caught.value.hint


def test_access_comes_from_the_config_where_none_is_given() -> None:
    assert EngineService().access == Access()
    words = ["access.schemes=[data,https]", "access.folders=[/media]", "access.max_bytes=10", "access.timeout=2"]
    assert EngineService([*words, "access.private_hosts=[minio.local]"]).access == Access(
        schemes=("data", "https"), folders=(Path("/media"),), max_bytes=10, timeout=2, private_hosts=("minio.local",)
    )


@pytest.mark.parametrize("word", ["access.max_bytes=0", "access.timeout=0", "access.timeout=nan", "access.timeout=inf"])
def test_access_that_lets_nothing_through_is_refused(word: str) -> None:
    with pytest.raises(ConfigError) as caught:
        EngineService([word])
    assert caught.value.field == word.partition("=")[0]


def test_request_cannot_widen_its_access() -> None:
    request = Request("a", REQUEST.image, REQUEST.speakers, overrides=("access.max_bytes=1",))
    with pytest.raises(RequestError, match="access"):
        EngineService().plan(request)


def test_request_cannot_change_what_is_fixed_at_boot() -> None:
    with pytest.raises(RequestError, match="sink"):
        EngineService().plan(Request("a", REQUEST.image, REQUEST.speakers, overrides=("sink=base64",)))
