"""The bench of a device runs from end to end where there is no GPU, and says that its figures are none of one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from engine.bench import device
from engine.errors import ConfigError


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(device.run(device="cpu", runs=1)))
    return found


def test_a_cpu_gets_reduced_shapes_and_the_report_says_so(report: dict[str, Any]) -> None:
    assert (report["reduced"], report["device"]) == (True, "cpu")
    assert list(report["block"]) == ["reduced, 1 speaker", "reduced, 2 speakers"]


def test_every_part_is_measured(report: dict[str, Any]) -> None:
    parts = ("products", "attention", "reference_map", "linears", "block", "offload", "codec")
    assert not [part for part in parts if "failed" in report[part] or "absent" in report[part]]
    assert report["products"]["reduced"]["seconds"] > 0
    assert report["reference_map"]["reduced"]["seconds"] > 0
    assert all(row["seconds"] > 0 for row in report["block"].values())
    assert report["codec"]["seconds"] > 0
    assert report["offload"]["offloaded_seconds"] > 0


def test_backends_are_timed_or_say_why_not(report: dict[str, Any]) -> None:
    rows = report["attention"]["reduced"]
    assert rows["sdpa"]["largest_difference"] == 0
    assert "CUDA" in rows["flash"]["absent"]


def test_weights_in_eight_bits_have_an_error(report: dict[str, Any]) -> None:
    pytest.importorskip("torchao")
    rows = report["linears"]
    assert 0 < rows["bfloat16"]["relative_error"] < 0.01
    assert rows["bfloat16"]["relative_error"] < rows["int8"]["relative_error"] < 0.03
    assert rows["int8"]["relative_error"] < rows["fp8"]["relative_error"] < 0.06


def test_full_shapes_are_those_of_the_published_model() -> None:
    from engine.fit.sizes import published_sizes

    config = published_sizes("wan-14b").configs["transformer"]
    assert (device.FULL.heads, device.FULL.head_dim, device.FULL.ffn_dim) == (
        config["num_attention_heads"],
        config["attention_head_dim"],
        config["ffn_dim"],
    )


def test_another_device_is_refused() -> None:
    with pytest.raises(ConfigError, match="no device 'tpu'"):
        device.run(device="tpu")
