"""`multitalk retake` makes windows of a video again, and says what is missing if it cannot."""

from __future__ import annotations

from pathlib import Path

import av
import pytest
from example_request import EXAMPLES

from engine.cli.main import main

PICTURE, VOICE = str(EXAMPLES / "one.png"), str(EXAMPLES / "one.flac")
MEDIA = ("--image", PICTURE, "--audio", VOICE)
FEW = ("sampler=turbo", "sampler.steps=1")


def make(folder: Path, frames: int, *words: str) -> Path:
    film = folder / "film.mp4"
    words = ("--prompt", "A woman speaks.", "--frames", str(frames), "--output", str(film), "--quiet", *FEW, *words)
    assert main(["generate", *MEDIA, *words]) == 0
    return film


def test_a_window_that_the_video_has_not_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    film, states = make(tmp_path, 5), f"resume.folder={tmp_path / 'states'}"

    assert main(["retake", str(film), "--window", "3", *MEDIA, "--quiet", states]) == 2

    assert "--window: the video has 1 windows, not 3" in capsys.readouterr().err
    assert [path.name for path in tmp_path.glob("*.mp4")] == ["film.mp4"]


@pytest.mark.parametrize("words", [[], ["--window", "0"], ["--window", "two"]])
def test_a_window_is_needed(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["retake", str(tmp_path / "film.mp4"), *words, *MEDIA]) == 2
    assert "--window: " in capsys.readouterr().err


@pytest.mark.parametrize("seed", ["-5", "seven", "9223372036854775808"])
def test_a_seed_out_of_range_names_the_flag(seed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--window", "1", "--seed", seed, *MEDIA]
    assert main(["retake", str(tmp_path / "film.mp4"), *words]) == 2
    assert capsys.readouterr().err.startswith(f"multitalk: error: --seed: '{seed}' is not a seed")


@pytest.mark.slow
def test_a_window_is_made_again_beside_the_video(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    states = f"resume.folder={tmp_path / 'states'}"
    film = make(tmp_path, 82, states, "resume.keep=true")
    none = f"resume.folder={tmp_path / 'none'}"
    assert main(["retake", str(film), "--window", "2", *MEDIA, "--quiet", none]) == 2
    assert "no state is kept of this video after window 1" in capsys.readouterr().err

    assert main(["retake", str(film), "--window", "2", "--seed", "7", *MEDIA, states]) == 0

    out, err = capsys.readouterr()
    again = tmp_path / "film-window-2-seed-7.mp4"
    assert out.strip() == str(again)
    assert "1 of 2 windows taken over" in err
    with av.open(str(again)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 82
    assert main(["retake", str(again), "--window", "2", *MEDIA, states]) == 2
    assert "made again already" in capsys.readouterr().err
    assert main(["again", str(again), *MEDIA, "--dry-run"]) == 0
    assert "its windows from 2 on were made again with seed 7" in capsys.readouterr().err
