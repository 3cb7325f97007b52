"""What compiled libraries need is read from the files, and one that was made for another CUDA is said to be so."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from elf_file import library

from engine.errors import ConfigError
from engine.machine.libraries import compiled, cuda_of, misfit, needed
from plugins.attention.xformers import Xformers, XformersConfig

ROOT = Path(__file__).parents[2]


def real_libraries() -> list[Path]:
    names = ("torch", "torchao", "safetensors", "tokenizers", "av", "soxr")
    return [path for name in names for path in compiled(name)][:60]


def test_what_a_real_library_needs_is_what_readelf_says() -> None:
    if shutil.which("readelf") is None:
        pytest.skip("binutils are not installed")
    paths = real_libraries()
    assert paths
    for path in paths:
        shown = subprocess.run(["readelf", "--wide", "--dynamic", path], capture_output=True, text=True, check=True)
        assert list(needed(path)) == re.findall(r"\(NEEDED\).*\[(.+)\]", shown.stdout), path


def test_a_library_of_pytorch_needs_pytorchs_own() -> None:
    (path,) = [path for path in compiled("torch") if path.name == "libtorch_python.so"]
    assert "libc10.so" in needed(path)


def test_the_cuda_of_a_library_is_that_of_the_runtime_it_needs(tmp_path: Path) -> None:
    assert cuda_of(library(tmp_path / "a.so", "libc10.so", "libcudart.so.12", "libc.so.6")) == 12
    assert cuda_of(library(tmp_path / "b.so", "libcudart.so.13")) == 13
    assert cuda_of(library(tmp_path / "c.so", "libc.so.6")) is None
    assert needed(library(tmp_path / "d.so")) == ()


@pytest.mark.parametrize("content", [b"", b"text", b"\x7fELF\x02\x01", b"\x7fELF\x01\x01" + bytes(100)])
def test_another_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.so"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="ELF"):
        needed(path)


def test_a_cut_library_is_refused(tmp_path: Path) -> None:
    path = library(tmp_path / "a.so", "libcudart.so.12")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match="not a complete ELF"):
        needed(path)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package `xformers` on the path, with the library that its wheel brings."""
    folder = tmp_path / "xformers"
    library(folder / "_C.so", "libc10.so", "libtorch.so", "libcudart.so.12")
    (folder / "__init__.py").write_text("raise ImportError('only its files are read')\n")
    about = tmp_path / "xformers-0.0.35.dist-info" / "METADATA"
    about.parent.mkdir()
    about.write_text("Metadata-Version: 2.1\nName: xformers\nVersion: 0.0.35\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "xformers", raising=False)
    return folder


@pytest.mark.parametrize(("cuda", "fits"), [("12.8", True), ("13.0", False), (None, False)])
def test_a_library_fits_the_cuda_that_it_was_compiled_for(installed: Path, cuda: str | None, fits: bool) -> None:
    problem = misfit("xformers", ["xformers"], cuda)
    assert (problem is None) == fits
    if problem is not None:
        assert problem.startswith("xformers 0.0.35 is compiled for CUDA 12 (_C.so needs libcudart.so.12), and torch")


def test_attention_that_cannot_be_loaded_says_why_in_one_line(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(ConfigError, match=r"compiled for CUDA 12 .* torch here brings CUDA 13") as caught:
        Xformers(XformersConfig()).resolve("cuda")
    assert "\n" not in str(caught.value)
    assert "attention=sdpa" in caught.value.hint
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    assert Xformers(XformersConfig()).resolve("cuda") == "xformers"


def test_attention_that_the_image_leaves_out_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.machine.kernels.find_spec", lambda _: None)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(ConfigError, match=r"PyPI's builds, up to 0\.0\.35, are for CUDA 12") as caught:
        Xformers(XformersConfig()).resolve("cuda")
    # It would install what cannot be loaded.
    assert "pip install" not in str(caught.value)
