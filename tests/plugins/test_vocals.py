"""Filters take noise from a voice, leave music to others, and say what they did."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from example_request import EXAMPLES

from engine import Request, Speaker
from engine.components import VoiceFilter
from engine.errors import MissingExtra
from engine.media.audio import decode
from engine.plugin.manager import installed
from plugins.vocals.auto import Auto, AutoConfig
from plugins.vocals.rnnoise import Rnnoise, RnnoiseConfig
from scripts.measure_voices import RATE, film, follow, mixed, music, sentence, white, write

filters = pytest.mark.skipif(find_spec("pyrnnoise") is None, reason="needs [vocals]")


@pytest.fixture(scope="module")
def voice() -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return decode(Path(str(EXAMPLES / "one.flac")), 16_000, "mono")


def test_each_filter_says_whether_it_filters() -> None:
    names = installed().vocals.names()
    assert {name: installed().vocals.build_default(name).filters for name in names} == {
        "auto": True,
        "none": False,
        "rnnoise": True,
    }


@pytest.mark.skipif(find_spec("pyrnnoise") is not None, reason="it is installed")
@pytest.mark.parametrize("kind", [Auto(AutoConfig()), Rnnoise(RnnoiseConfig())])
def test_a_missing_package_is_named(kind: VoiceFilter) -> None:
    with pytest.raises(MissingExtra, match="pyrnnoise"):
        kind.check()


@filters
def test_noise_is_removed_and_the_voice_keeps_its_length(voice: np.ndarray) -> None:
    noisy = mixed(voice, white(len(voice)), 0)
    for kind in (Rnnoise(RnnoiseConfig()), Auto(AutoConfig())):
        cleaned, told = kind.clean(noisy)
        assert cleaned.shape == voice.shape
        assert cleaned.dtype == np.float32
        assert "the network hears the voice without" in told
        # As loud as the noise is, less than half of the sound is the voice's.
        assert np.corrcoef(cleaned, voice)[0, 1] > np.corrcoef(noisy, voice)[0, 1] + 0.1


@filters
def test_auto_leaves_a_clean_voice_and_music_as_they_are(voice: np.ndarray) -> None:
    kind = Auto(AutoConfig())
    cleaned, told = kind.clean(voice)
    assert cleaned is voice
    assert told == ""
    for level in (0, -10):
        song = mixed(voice, music(len(voice)), level)
        cleaned, told = kind.clean(song)
        assert cleaned is song
        assert "with tones, such as music" in told
        assert "soundtrack" in told


@pytest.mark.slow
@filters
@pytest.mark.skipif(find_spec("espeakng_loader") is None, reason="needs [speech]")
def test_lips_follow_a_voice_in_noise_as_they_follow_the_clean_one(tmp_path: Path) -> None:
    clean = sentence("Hello, it is good to see you again. Did you notice the new bridge?")
    noisy = mixed(clean, white(len(clean)), 0)
    lips = {}
    for name, sound, choice in (("clean", clean, "none"), ("noisy", noisy, "none"), ("filtered", noisy, "auto")):
        path = write(tmp_path / f"{name}.wav", sound)
        speakers, picture = (Speaker(str(path)),), str(EXAMPLES / "one.png")
        request = Request("a person talks", picture, speakers, overrides=(f"vocals={choice}",), filename=f"{name}.mp4")
        plan, frames, _ = film(request, tmp_path)
        lips[name] = follow(plan, frames, clean[None])[0]["own"]
    # Measured: 0.96, 0.86 and 0.95 (docs/voices.md).
    assert lips["filtered"] > lips["clean"] - 0.06
    assert lips["filtered"] > lips["noisy"] + 0.03
    heard = decode(tmp_path / "filtered.mp4", RATE, "mono")
    length = min(len(heard), len(noisy))
    assert np.corrcoef(heard[:length], noisy[:length])[0, 1] > 0.9
