"""`multitalk bench generate` makes videos in new processes, in turn with another version."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.bench.generate import run
from engine.errors import RequestError

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_version_is_compared_with_another_by_stage() -> None:
    if not (ROOT / ".venv" / "bin" / "python").exists():
        pytest.skip("this checkout has no .venv")
    report = run(rounds=1, cases="start", against=str(ROOT))["cases"]["start"]

    assert report["this"]["cpu"] > report["this"]["denoise"] > 0
    assert set(report["this"]) == set(report["other"]) == set(report["ratio"])
    assert 0.3 < report["ratio"]["cpu"] < 3
    assert report["ratio"]["cpu"] == pytest.approx(report["this"]["cpu"] / report["other"]["cpu"])


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"cases": "turbo-tiny"}, "no case named 'turbo-tiny'"),
        ({"frames": 1}, "1 frames"),
        ({"against": "nowhere"}, "nowhere cannot be run"),
    ],
)
def test_settings_that_do_not_fit_are_named(settings: dict[str, object], what: str) -> None:
    with pytest.raises(RequestError, match=what):
        run(**settings)  # type: ignore[arg-type]
