"""Fitness checks: each failure says what to do."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from worker_fakes import FakeService

from engine.serving.worker.fitness import UnfitError, check_device, check_disk_space, check_memory, checks


def failing(part: str, line: str, hint: str = "") -> FakeService:
    service = FakeService()
    service.report = {"failed": {part: line}, "hints": {part: hint or line.rpartition("; ")[2]}}
    return service


@pytest.mark.parametrize(
    ("part", "line"),
    [
        (
            "weights",
            "source: no weights for the model 'multitalk'; get them with: multitalk models pull",
        ),
        ("sink", "sink: there are no credentials for bucket 'films'; set AWS_ACCESS_KEY_ID"),
    ],
)
def test_what_the_service_misses_is_told_in_its_words(part: str, line: str) -> None:
    named = {check.__name__: check for check in checks(failing(part, line))}
    with pytest.raises(UnfitError, match=r"^(get them with|set AWS_ACCESS_KEY_ID)"):
        named[f"multitalk_{part}"]()
    for name in {"multitalk_weights", "multitalk_sink", "multitalk_device"} - {f"multitalk_{part}"}:
        named[name]()


def test_a_hint_of_several_parts_stays_whole() -> None:
    hint = "it is not removed; send the job under another name"
    named = {check.__name__: check for check in checks(failing("sink", f"sink: it is damaged; {hint}", hint))}
    with pytest.raises(UnfitError, match=f"^{hint}; sink: it is damaged$"):
        named["multitalk_sink"]()


def test_nothing_is_asked_before_a_check_runs() -> None:
    service = FakeService()
    service.report = {}
    assert len(checks(service)) == 5


def test_a_missing_gpu_is_told_with_what_helps() -> None:
    with pytest.raises(UnfitError, match=r"no GPU; choose a GPU for the endpoint.*device=cpu"):
        check_device("cuda", (sys.executable, "-c", "print('no devices')"))
    with pytest.raises(UnfitError):
        check_device("cuda", ("no-such-command",))


def test_a_gpu_is_needed_by_cuda_alone() -> None:
    check_device("cuda", (sys.executable, "-c", "print('GPU 0: ACME')"))
    check_device("auto", ("no-such-command",))
    check_device("cpu", ("no-such-command",))


def test_memory_holds_the_largest_file_of_weights(tmp_path: Path) -> None:
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "a.safetensors").write_bytes(b"x" * 1000)
    (tmp_path / "b.safetensors").write_bytes(b"x" * 10)
    check_memory(tmp_path, lambda: 1000)
    check_memory(tmp_path, lambda: None)
    check_memory(None, lambda: 0)
    with pytest.raises(UnfitError, match="choose a machine with more memory"):
        check_memory(tmp_path, lambda: 999)


def test_a_full_disk_is_told_with_what_helps(tmp_path: Path) -> None:
    check_disk_space(tmp_path, needed=1)
    with pytest.raises(UnfitError, match="larger container disk, or set TMPDIR"):
        check_disk_space(tmp_path, needed=2**60)
