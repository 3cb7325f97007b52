"""`multitalk bench live` times when the first part of a video is out."""

from __future__ import annotations

import json

import pytest

from engine.bench.live import run
from engine.cli.main import main
from engine.errors import RequestError

#: Windows of 5 frames, with 4 new ones each after the first.
SMALL = "model=tiny model.window=5 continuation.frames=1 continuation.blend=2 sampler=turbo sampler.steps=1"


def test_the_first_part_is_timed_against_the_first_window() -> None:
    report = run(settings=(SMALL, f"{SMALL} guidance.audio_scale=2"), frames=13, rounds=1)

    one, guided = report["rows"]
    assert (one["windows"], one["first_part_video"], one["video"]) == (3, 0.2, 0.52)
    assert (one["forwards_a_window"], guided["forwards_a_window"]) == (1, 2)
    assert guided["forwards_a_second"] == pytest.approx(6 / 0.52, abs=0.01)
    assert 0 < one["first_window"] < one["whole"]
    assert one["first_part"] == pytest.approx(one["first_window"] + one["behind"], abs=0.002)
    assert one["first_part"] <= one["whole"]
    json.dumps(report)


def test_bad_numbers_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RequestError, match="0 rounds"):
        run(rounds=0)
    assert main(["bench", "live", "--settings", "model=tiny sampler=eulr"]) == 2
    assert "sampler: no sampler named 'eulr'" in capsys.readouterr().err
