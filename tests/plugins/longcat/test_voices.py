"""LongCat's voices: Whisper's groups of layers, preparation for wav2vec2, tracks of several speakers."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from engine.errors import Cancelled, RequestError, SourceError
from engine.media.audio import set_loudness
from engine.media.loudness import integrated_loudness
from engine.network.audio import SAMPLE_RATE, AudioEncoder, audio_frames
from plugins.families.longcat.versions import VERSIONS, version
from plugins.families.longcat.voices import add_noise, encode_tracks, join_tracks, low_pass, prepare_voice
from plugins.families.longcat.whisper import PIECE, WhisperFeatures, layer_groups, load_whisper

# Values reach 18; measured: 2.2e-5.
TOLERANCE = 1e-4


def loud(voice: Any) -> Any:
    return set_loudness(voice, integrated_loudness(voice, SAMPLE_RATE))


def drawn(seed: int, samples: int) -> Any:
    """The signal of the recordings, from its formula."""
    time = np.arange(samples) / SAMPLE_RATE
    tone = (
        0.2 * np.sin(2 * np.pi * 220 * time * (1 + 0.1 * np.sin(time))) * (0.5 + 0.5 * np.sin(2 * np.pi * 1.7 * time))
    )
    return (tone + 0.02 * np.random.RandomState(seed).randn(samples)).astype(np.float32)


@pytest.fixture(scope="module")
def features(longcat: Any) -> WhisperFeatures:
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    encoder: Any = WhisperEncoder(WhisperConfig(**json.loads(longcat.header("whisper_tiny")["config"])))
    stored = longcat.tensors("whisper_tiny")
    encoder.load_state_dict({key[6:]: part for key, part in stored.items() if key.startswith("model.")})
    return WhisperFeatures(encoder.eval())


@pytest.mark.parametrize("pieces", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_features_equal_the_recording(longcat: Any, features: WhisperFeatures, pieces: int) -> None:
    recorded = longcat.tensors("whisper_tiny")
    cases = json.loads(longcat.header("whisper_tiny")["wave"].partition("samples): ")[2])
    cases = [case for case in cases if -(-case[2] // PIECE) == pieces]
    assert cases
    for name, seed, samples in cases:
        voice = loud(drawn(seed, samples))
        frames = audio_frames(samples, 25)
        if f"{name}.normalised" in recorded:
            np.testing.assert_allclose(voice, recorded[f"{name}.normalised"].numpy(), atol=1e-6)
        assert frames == int(recorded[f"{name}.frames"])

        found = features.encode(torch.tensor(voice), frames)

        torch.testing.assert_close(found, recorded[f"{name}.embedding"], atol=TOLERANCE, rtol=0)


def test_silence_has_features_of_its_own(longcat: Any, features: WhisperFeatures) -> None:
    recorded = longcat.tensors("whisper_tiny")["silence.embedding"]

    found = features.encode(torch.zeros(SAMPLE_RATE), 25)

    torch.testing.assert_close(found, recorded, atol=TOLERANCE, rtol=0)
    assert found.abs().max() > 0.1


def test_the_encoder_is_read_from_a_whole_whisper_in_16_bits(
    longcat: Any, features: WhisperFeatures, tmp_path: Path
) -> None:
    stored = longcat.tensors("whisper_tiny")
    encoder = {f"model.encoder.{key[6:]}": part.half() for key, part in stored.items() if key.startswith("model.")}
    save_file(encoder | {"model.decoder.embed_tokens.weight": torch.zeros(4, 4)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(longcat.header("whisper_tiny")["config"])

    loaded = load_whisper(tmp_path)

    for name, parameter in features.model.named_parameters():
        assert torch.equal(loaded.model.get_parameter(name), parameter.half().float()), name
    save_file({key: part for key, part in encoder.items() if "conv1" not in key}, tmp_path / "model.safetensors")
    with pytest.raises(SourceError, match="conv1"):
        load_whisper(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(SourceError, match="builds no Whisper"):
        load_whisper(tmp_path)


def test_layers_are_grouped_as_published() -> None:
    assert layer_groups(32) == ((0, 8), (8, 16), (16, 24), (24, 32), (32, 33))


def test_encoding_stops_between_pieces(features: WhisperFeatures) -> None:
    class Second(threading.Event):
        asked = 0

        def is_set(self) -> bool:
            self.asked += 1
            return self.asked > 1

    cancel = Second()
    with pytest.raises(Cancelled):
        features.encode(torch.zeros(PIECE + 1), 750, cancel=cancel)
    assert cancel.asked == 2


def test_a_voice_for_wav2vec2_equals_the_recording(longcat: Any) -> None:
    recorded = longcat.tensors("wav2vec2_preparation")
    names = [name.partition(".")[0] for name in recorded if name.endswith(".waveform")]
    assert names
    for name in names:
        voice = loud(recorded[f"{name}.waveform"].numpy())
        np.testing.assert_allclose(voice, recorded[f"{name}.loud"].numpy(), atol=1e-6)

        heard = low_pass(add_noise(voice, recorded[f"{name}.noise"].numpy()))

        np.testing.assert_allclose(heard, recorded[f"{name}.out"].numpy(), atol=1e-6)


def test_the_noise_of_a_voice_is_that_of_its_generator() -> None:
    """Declined quirk: the reference draws it from a generator that nobody seeded."""
    voice = drawn(1, 4000)

    first, again = (prepare_voice(voice, torch.Generator().manual_seed(7)) for _ in range(2))
    other = prepare_voice(voice, torch.Generator().manual_seed(8))

    assert np.array_equal(first, again)
    difference = first - other
    # Two noises of -45 dB, below 3 of 8 kHz.
    assert np.std(difference) == pytest.approx(10 ** (-45 / 20) * np.sqrt(2 * 3 / 8), rel=0.1)


def test_tracks_are_encoded_at_the_rate_of_their_version(
    features: WhisperFeatures, recordings: Any, longcat_home: Any
) -> None:
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    stored = recordings.tensors("wav2vec2_tiny")
    model: Any = Wav2Vec2Model(Wav2Vec2Config(**json.loads(recordings.header("wav2vec2_tiny")["config"])))
    model.load_state_dict({key[6:]: part for key, part in stored.items() if key.startswith("model.")}, strict=False)
    heard = AudioEncoder(model.eval())
    tracks = [loud(drawn(1, 8000)), np.zeros(8000, np.float32)]

    def encode(version: str, encoder: Any, seed: int) -> torch.Tensor:
        return encode_tracks(VERSIONS[version], encoder, tracks, torch.Generator().manual_seed(seed))

    old, again, other = (encode("1.0", heard, seed) for seed in (3, 3, 4))
    new = encode("1.5", features, 3)

    assert old.shape[:2] == (2, 16)
    assert torch.equal(old, again)
    assert not torch.equal(old, other)
    assert new.shape[:3] == (2, 12, 5)
    assert torch.equal(new, encode("1.5", features, 4))


def test_voices_of_different_lengths_are_one_after_the_other_or_together() -> None:
    """Declined quirk: the reference refuses voices of different lengths that speak together."""
    first, second = np.ones(3, np.float32), np.full(2, 2, np.float32)

    together = join_tracks([first, second], "para")
    turns = join_tracks([first, second], "add", bystanders=True)

    assert [track.tolist() for track in together] == [[1, 1, 1], [2, 2, 0]]
    assert [track.tolist() for track in turns] == [[1, 1, 1, 0, 0], [0, 0, 0, 2, 2], [0, 0, 0, 0, 0]]


def test_a_silent_speaker_has_a_track_and_two_silent_ones_are_refused() -> None:
    voice = np.ones(3, np.float32)

    assert [track.tolist() for track in join_tracks([None, voice], "para")] == [[0, 0, 0], [1, 1, 1]]
    with pytest.raises(RequestError, match="no speaker has a voice"):
        join_tracks([None, None], "add")


def test_versions_have_their_own_rates() -> None:
    assert {name: (one.fps, one.stride, one.keeps_latents) for name, one in VERSIONS.items()} == {
        "1.0": (16, 2, True),
        "1.5": (25, 1, False),
    }
    with pytest.raises(Exception, match=r"1\.0 or 1\.5"):
        version("2")
