"""The comparison of diffusers' model tests on both networks, which `nox -s diffusers` prints."""

from __future__ import annotations

from pathlib import Path

import pytest
from mixin_counts import report

CASE = '<testcase classname="tests.diffusers_mixins.Test{}" name="{}">{}</testcase>'


def write(path: Path, *cases: tuple[str, str, str]) -> None:
    path.write_text(f"<testsuites><testsuite>{''.join(CASE.format(*case) for case in cases)}</testsuite></testsuites>")


def test_counts_are_of_each_group_and_differences_are_named(tmp_path: Path) -> None:
    write(
        tmp_path / "ours-1.xml", ("Lora", "swap", "<failure/>"), ("Lora", "save", ""), ("Model", "half", "<skipped/>")
    )
    write(tmp_path / "ours-2.xml", ("Model", "load", "<error/>"))
    write(tmp_path / "wan.xml", ("Lora", "swap", ""), ("Lora", "save", "<failure/>"))
    write(tmp_path / "wan-2.xml", ("Model", "half", "<skipped/>"), ("Model", "load", "<failure/>"))

    made = report(tmp_path, "tag v1")

    assert made["tests"] == "tag v1"
    assert made["groups"]["Lora"] == {
        "ours": {"passed": 1, "failed": 1, "skipped": 0},
        "wan": {"passed": 1, "failed": 1, "skipped": 0},
    }
    assert made["total"]["ours"] == {"passed": 1, "failed": 2, "skipped": 1}
    assert [made[which] for which in ("only_ours_fails", "only_wan_fails", "both_fail")] == [
        ["Lora.swap"],
        ["Lora.save"],
        ["Model.load"],
    ]


def test_different_tests_are_not_compared(tmp_path: Path) -> None:
    write(tmp_path / "ours.xml", ("Lora", "swap", ""))
    write(tmp_path / "wan.xml", ("Lora", "save", ""))

    with pytest.raises(ValueError, match=r"Lora\.save.*Lora\.swap"):
        report(tmp_path, "")
