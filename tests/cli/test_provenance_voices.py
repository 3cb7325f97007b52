"""`again` makes a video of a script, a recording, filtered voices, found people or a soundtrack with the same bytes."""

from __future__ import annotations

import wave
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from engine.cli.main import main
from engine.media.audio import decode

EXAMPLES = Path(__file__).parents[2] / "engine" / "examples"
TWO, ONE, VOICE, CALL = (str(EXAMPLES / name) for name in ("two.png", "one.png", "one.flac", "call.flac"))
COMMON = ("--prompt", "people talk", "--frames", "5", "--quiet", "sampler.steps=1", "report.enabled=false")

speaks = pytest.mark.skipif(find_spec("espeakng_loader") is None, reason="needs [speech]")
filters = pytest.mark.skipif(find_spec("pyrnnoise") is None, reason="needs [vocals]")
divides = pytest.mark.skipif(find_spec("resemblyzer") is None, reason="needs [diarise]")
#: The fields of a request that are made of other media than a voice for each person: words of `generate`, of `again`.
CASES = {
    "script": pytest.param(
        ("--image", TWO, "--script", "anna: Hello.\nben: Good day.\n"), ("--image", TWO), marks=speaks
    ),
    "channels": (("--image", TWO, "--voices", CALL, "diariser=channels"), ("--image", TWO, "--voices", CALL)),
    "resemblyzer": pytest.param(("--image", TWO, "--voices", CALL), ("--image", TWO, "--voices", CALL), marks=divides),
    "rnnoise": pytest.param(
        ("--image", ONE, "--audio", VOICE, "vocals=rnnoise"), ("--image", ONE, "--audio", VOICE), marks=filters
    ),
    "regions": (
        ("--image", TWO, "--audio", VOICE, "--audio", VOICE, "regions=auto"),
        ("--image", TWO, "--audio", VOICE, "--audio", VOICE),
    ),
    "soundtrack": (
        ("--image", ONE, "--audio", VOICE, "--soundtrack", CALL),
        ("--image", ONE, "--audio", VOICE, "--soundtrack", CALL),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(("made", "given"), CASES.values(), ids=list(CASES))
def test_the_same_bytes_come_again(
    made: tuple[str, ...], given: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "first.mp4", tmp_path / "second.mp4"
    assert main(["generate", *COMMON, *made, "--output", str(first)]) == 0
    capsys.readouterr()
    assert main(["again", str(first), "--quiet", *given, "--output", str(second)]) == 0
    told = capsys.readouterr().err
    assert second.read_bytes() == first.read_bytes()
    assert "not the" not in told
    assert " was " not in told


@pytest.mark.slow
def test_a_soundtrack_is_heard_must_be_given_again_and_another_one_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, words = tmp_path / "first.mp4", ("--image", ONE, "--audio", VOICE)
    assert main(["generate", *COMMON, *words, "--soundtrack", CALL, "--output", str(path)]) == 0
    heard, original = (decode(Path(one), 16_000, "mono") for one in (path, CALL))
    # AAC changes samples a little, and the voice is another sound altogether.
    length = min(len(heard), round(0.2 * 16_000))
    assert np.corrcoef(heard[:length], original[:length])[0, 1] > 0.9
    assert main(["again", str(path), "--quiet", *words]) != 0
    assert "request.soundtrack: it was made with a soundtrack; give the soundtrack again" in capsys.readouterr().err
    other = ("--soundtrack", VOICE, "--output", str(tmp_path / "second.mp4"))
    assert main(["again", str(path), "--quiet", *words, *other]) == 0
    assert "is not the soundtrack that the video was made with" in capsys.readouterr().err


@pytest.mark.slow
@filters
def test_a_filtered_voice_is_heard_as_it_was(tmp_path: Path) -> None:
    noisy, path = tmp_path / "noisy.wav", tmp_path / "talk.mp4"
    rng = np.random.default_rng(0)
    samples = decode(Path(VOICE), 16_000, "mono")[:16_000] * 0.3 + 0.05 * rng.standard_normal(16_000)
    with wave.open(str(noisy), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
    words = ("--image", ONE, "--audio", str(noisy), "--prompt", "a", "--frames", "25", "--quiet", "sampler.steps=1")
    assert main(["generate", *words, "vocals=rnnoise", "--output", str(path)]) == 0
    heard = decode(path, 16_000, "mono")
    assert np.corrcoef(heard[:14_000], samples[:14_000])[0, 1] > 0.97
