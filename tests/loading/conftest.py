"""Folders of small weights, as they are published."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from original_folder import write_original
from small_weights import WAN


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_original(tmp_path_factory.mktemp("volume") / "multitalk")


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy to change, without the transformer's shards."""
    copy = Path(shutil.copytree(whole, tmp_path / "multitalk"))
    for path in (copy / WAN).glob("*.safetensors"):
        path.unlink()
    return copy
