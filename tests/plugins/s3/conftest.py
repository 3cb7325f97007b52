"""A store in a process of its own, a proxy before it, and a machine without configuration of its own."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from s3_store import KEY_ID, SECRET, Proxy
from store import storing

from engine.net import s3
from plugins.sinks.s3 import S3Config


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a store in a process of its own: bucket films is in us-east-1, abroad in eu-west-1."""
    pytest.importorskip("moto")
    with storing(tmp_path_factory.mktemp("moto") / "log", {"films": "us-east-1", "abroad": "eu-west-1"}) as port:
        yield port


@pytest.fixture
def proxy(store: int) -> Iterator[Proxy]:
    with Proxy(store) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield server
        server.shutdown()


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of this machine's own, nothing that the process knows of stores, and keys under RunPod's names."""
    monkeypatch.setattr(s3, "_WITHOUT", {})
    for name in list(os.environ):
        if name.startswith(("AWS_", "BUCKET_", "S3_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("BUCKET_ACCESS_KEY_ID", KEY_ID)
    monkeypatch.setenv("BUCKET_SECRET_ACCESS_KEY", SECRET)


@pytest.fixture
def config(proxy: Proxy, tmp_path: Path) -> S3Config:
    """Small patience: two attempts, of up to three tries each."""
    return S3Config(
        bucket="films",
        region="us-east-1",
        endpoint_url=proxy.url,
        attempts=2,
        backoff=0.01,
        timeout=20,
        keep_folder=str(tmp_path / "kept"),
    )
