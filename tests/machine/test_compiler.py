"""What Triton needs to compile is looked for: itself, a compiler, and Python's headers."""

from __future__ import annotations

import sysconfig
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from engine.machine import compiler


@pytest.fixture
def complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with everything, in a folder."""
    (tmp_path / "Python.h").touch()
    gcc = tmp_path / "gcc"
    gcc.write_text("#!/bin/sh\n")
    gcc.chmod(0o755)
    monkeypatch.setattr(compiler, "find_spec", lambda name: ModuleSpec(name, None))
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    return tmp_path


def test_a_machine_with_everything_lacks_nothing(complete: Path) -> None:
    assert compiler.find_compiler() == str(complete / "gcc")
    assert compiler.missing_for_triton() is None


def test_each_missing_part_is_named_with_its_package(complete: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (complete / "Python.h").unlink()
    what, hint = compiler.missing_for_triton() or ("", "")
    assert what.startswith("Python's headers")
    assert "python3-dev" in hint

    (complete / "gcc").unlink()
    what, hint = compiler.missing_for_triton() or ("", "")
    assert "no C compiler" in what
    assert "gcc" in hint

    monkeypatch.setattr(compiler, "find_spec", lambda name: None)
    assert (compiler.missing_for_triton() or ("",))[0] == "Triton is not installed"
