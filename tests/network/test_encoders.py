"""Encoders: text, picture, voice and latents against recordings and against the libraries' own ways."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from tiny_folder import build_audio_encoder, build_image_encoder, build_text_encoder, build_tokenizer, build_vae
from torch import Tensor

from engine.errors import Cancelled, RequestError
from engine.network.audio import AudioEncoder, audio_frames, audio_windows
from engine.network.codec import WanCodec, _lay_channels_last
from engine.network.image import MEAN, STD, ImageEncoder, clip_pixels
from engine.network.text import TextEncoder, clean_prompt


class After(threading.Event):
    """Set once it was asked `times` times."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.left = times

    def is_set(self) -> bool:
        self.left -= 1
        return self.left < 0


# --- text -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "cleaned"),
    [
        ("  two\n\tpeople  talk ", "two people talk"),
        ("Tom &amp;amp; Ann", "Tom & Ann"),
        ("schÃ¶n", "schön"),
        ("", ""),
    ],
)
def test_prompts_are_cleaned(given: str, cleaned: str) -> None:
    assert clean_prompt(given) == cleaned


@pytest.fixture(scope="module")
def text() -> TextEncoder:
    return TextEncoder(build_tokenizer(), build_text_encoder(), text_len=8)


@pytest.mark.parametrize("prompt", ["a person speaks", "", "the bright face of a still person speaks to the two"])
def test_features_equal_those_of_the_padded_prompt(prompt: str, text: TextEncoder) -> None:
    tokens = text.tokenizer([prompt], padding="max_length", max_length=8, truncation=True, return_tensors="pt")
    with torch.no_grad():
        padded = text.model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state

    features = text.encode(prompt)

    assert features.shape == (1, int(tokens.attention_mask.sum()), 16)
    torch.testing.assert_close(features[0], padded[0, : features.shape[1]], atol=1e-5, rtol=0)


def test_a_long_prompt_is_cut_and_still_ends(text: TextEncoder) -> None:
    tokens: list[Tensor] = []
    handle = text.model.register_forward_pre_hook(
        lambda _module, _args, given: tokens.append(given["input_ids"]), with_kwargs=True
    )
    text.encode("a " * 50)
    handle.remove()

    assert tokens[0].shape == (1, 8)
    assert tokens[0][0, -1] == text.tokenizer.eos_token_id


# --- picture ----------------------------------------------------------------------------------------------------------


def test_the_picture_is_stretched_not_cropped() -> None:
    pixels = torch.full((3, 40, 80), -1.0)
    pixels[:, :, -8:] = 1.0
    given = clip_pixels(pixels, 28)

    assert given.shape == (1, 3, 28, 28)
    unit = given[0] * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
    torch.testing.assert_close(unit[:, :, -1], torch.ones(3, 28), atol=1e-5, rtol=0)
    torch.testing.assert_close(unit[:, :, 0], torch.zeros(3, 28), atol=1e-5, rtol=0)


def test_image_features_leave_out_the_last_layer() -> None:
    model = build_image_encoder()
    encoder = ImageEncoder(model)
    pixels = torch.rand(3, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    entered: list[Tensor] = []
    last = [module for module in model.modules() if type(module).__name__ == "CLIPEncoderLayer"][-1]
    last.register_forward_pre_hook(
        lambda _module, args, given: entered.append(args[0] if args else given["hidden_states"]), with_kwargs=True
    )

    features = encoder.encode(pixels)

    assert features.shape == (1, 5, 24)
    assert torch.equal(features, entered[0])


# --- voice ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded_encoder(home_recordings: Any) -> AudioEncoder:
    encoder: AudioEncoder = home_recordings.audio_encoder("wav2vec2_tiny")
    return encoder


@pytest.mark.parametrize("case", ["x", "y"])
def test_audio_features_equal_the_recording(case: str, recorded_encoder: AudioEncoder, home_recordings: Any) -> None:
    recorded = home_recordings.tensors("wav2vec2_tiny")
    voice = recorded[f"{case}.waveform"]

    features = recorded_encoder.encode(voice, audio_frames(len(voice), 25))

    assert features.shape[0] == int(recorded[f"{case}.frames"])
    # Other versions of the library order the sums otherwise.
    torch.testing.assert_close(features, recorded[f"{case}.embedding"], atol=1e-4, rtol=0)


def test_the_encoder_is_left_as_it_was(recorded_encoder: AudioEncoder) -> None:
    extractor = recorded_encoder.model.feature_extractor
    with pytest.raises(Cancelled):
        recorded_encoder.encode(torch.zeros(4000), 7, cancel=After(2))

    assert recorded_encoder.model.feature_extractor is extractor
    assert not any(layer._forward_pre_hooks for layer in recorded_encoder.model.encoder.layers)


@pytest.mark.parametrize("chunk", [0.02, 0.1, 0.25])
@pytest.mark.parametrize("samples", [20800, 16400, 16079])
def test_a_long_voice_comes_out_the_same_in_chunks(chunk: float, samples: int, recorded_encoder: AudioEncoder) -> None:
    voice = torch.randn(samples, generator=torch.Generator().manual_seed(0)).cumsum(0)
    chunked = AudioEncoder(recorded_encoder.model, chunk=chunk).encode(voice, 30)

    torch.testing.assert_close(chunked, recorded_encoder.encode(voice, 30), atol=2e-5, rtol=0)


def test_layers_with_norms_of_their_own_come_out_the_same_in_chunks() -> None:
    model = build_audio_encoder(feat_extract_norm="layer", do_stable_layer_norm=True)
    voice = torch.randn(9000, generator=torch.Generator().manual_seed(0))

    whole, chunked = (AudioEncoder(model, chunk=chunk).encode(voice, 14) for chunk in (30.0, 0.1))

    torch.testing.assert_close(chunked, whole, atol=2e-5, rtol=0)


def test_cancel_is_seen_between_chunks_of_a_voice(recorded_encoder: AudioEncoder) -> None:
    with pytest.raises(Cancelled):
        AudioEncoder(recorded_encoder.model, chunk=0.1).encode(torch.zeros(16000), 25, cancel=After(3))


@pytest.mark.parametrize("samples", [0, 1, 399, 640])
def test_a_voice_shorter_than_the_convolutions_is_padded(samples: int) -> None:
    features = AudioEncoder(build_audio_encoder()).encode(torch.zeros(samples), audio_frames(samples, 25))

    assert features.shape == (1, 2, 16)
    assert features.isfinite().all()


@pytest.mark.parametrize(
    ("samples", "fps", "frames"), [(16000, 25, 25), (15999, 25, 24), (0, 25, 1), (640, 25, 1), (53376, 30, 100)]
)
def test_frames_of_a_voice(samples: int, fps: float, frames: int) -> None:
    assert audio_frames(samples, fps) == frames


def test_windows_at_the_native_rate_equal_the_recording(home_recordings: Any) -> None:
    recorded = home_recordings.tensors("audio_window_proj")
    starts = [int(name[1:].partition(".")[0]) for name in recorded if name.endswith(".windows")]

    assert sorted(starts) == [0, 12, 30]
    for start in starts:
        windows = audio_windows(recorded["full_emb"], start, 13, 25, 25)
        assert torch.equal(windows, recorded[f"s{start}.windows"])


@pytest.mark.parametrize("fps", [8.0, 24.0, 29.97, 50.0])
@pytest.mark.parametrize("start", [0, 7])
def test_windows_at_another_rate_are_centred_on_the_frames_own_time(fps: float, start: int) -> None:
    # A feature that says its own native frame number.
    ramp = torch.arange(100.0).view(1, 100, 1, 1).repeat(2, 1, 3, 4)
    windows = audio_windows(ramp, start, 9, fps, 25.0)

    assert windows.shape == (2, 9, 5, 3, 4)
    for frame in range(9):
        expected = [min(max((start + frame) / fps * 25 + slot, 0), 99) for slot in (-2, -1, 0, 1, 2)]
        assert windows[1, frame, :, 2, 3].tolist() == pytest.approx(expected, abs=1e-4)


def test_windows_at_half_the_rate_are_every_second_native_one() -> None:
    features = torch.randn(1, 30, 2, 3, generator=torch.Generator().manual_seed(0))

    assert torch.equal(audio_windows(features, 0, 9, 12.5, 25.0), audio_windows(features, 0, 17, 25.0, 25.0)[:, ::2])


# --- latents ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def codec() -> WanCodec:
    return WanCodec(build_vae())


def test_latents_are_the_normalised_mean(codec: WanCodec) -> None:
    pixels = torch.rand(3, 9, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        mean = codec.vae.encode(pixels[None]).latent_dist.mean[0]

    latents = codec.encode(pixels)

    assert latents.shape == (16, 3, 2, 3)
    std, offset = (torch.tensor(codec.vae.config[key]).view(-1, 1, 1, 1) for key in ("latents_std", "latents_mean"))
    torch.testing.assert_close(latents * std + offset, mean, atol=1e-5, rtol=0)
    assert torch.equal(codec.encode(pixels), latents)


def test_decoding_takes_normalised_latents(codec: WanCodec) -> None:
    latents = torch.randn(16, 2, 2, 3, generator=torch.Generator().manual_seed(0))
    std, offset = (torch.tensor(codec.vae.config[key]).view(-1, 1, 1, 1) for key in ("latents_std", "latents_mean"))
    with torch.no_grad():
        expected = codec.vae.decode((latents * std + offset)[None]).sample[0]

    pixels = codec.decode(latents)

    assert pixels.shape == (3, 5, 16, 24)
    assert torch.equal(pixels, expected)
    assert pixels.abs().max() <= 1


def test_small_pictures_take_another_convolution_to_the_same_numbers(codec: WanCodec) -> None:
    pixels = torch.rand(3, 9, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    plain = build_vae()
    with torch.no_grad():
        latents = plain.encode(pixels[None]).latent_dist.mode()
        frames = plain.decode(latents).sample

        # float32 sums in another order.
        torch.testing.assert_close(codec.vae.encode(pixels[None]).latent_dist.mode(), latents, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(codec.vae.decode(latents).sample, frames, atol=1e-5, rtol=1e-5)


PARTS_OF_VAE = ("encoder", "quant_conv", "decoder", "post_quant_conv")


def psnr(one: Tensor, other: Tensor) -> float:
    """Return the peak signal-to-noise ratio in dB of pixels in -1 .. 1."""
    return float(10 * torch.log10(4 / (one - other).square().mean()))


def test_decoding_in_bfloat16_stays_near_and_encoding_stays_exact(codec: WanCodec) -> None:
    rounded = WanCodec(build_vae(), torch.bfloat16)
    pixels = torch.rand(3, 9, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = torch.randn(16, 3, 2, 3, generator=torch.Generator().manual_seed(0))

    decoded = rounded.decode(latents)

    assert torch.equal(rounded.encode(pixels), codec.encode(pixels))
    assert decoded.dtype == torch.float32
    # Random weights amplify rounding; with trained ones it is 54 dB (docs/codec.md). diffusers rounds more often.
    plain = build_vae().bfloat16()
    std, offset = (torch.tensor(plain.config[key]).view(-1, 1, 1, 1) for key in ("latents_std", "latents_mean"))
    with torch.no_grad():
        theirs = plain.decode((latents * std + offset)[None].bfloat16()).sample[0].float()
    exact = codec.decode(latents)
    assert 20 < psnr(theirs, exact) < psnr(decoded, exact) + 1
    kinds = {name: {value.dtype for value in getattr(rounded.vae, name).parameters()} for name in PARTS_OF_VAE}
    assert kinds == {
        "encoder": {torch.float32},
        "quant_conv": {torch.float32},
        "decoder": {torch.bfloat16},
        "post_quant_conv": {torch.bfloat16},
    }


def test_weights_that_are_read_into_the_same_network_again_are_converted_again() -> None:
    vae = build_vae()
    codec = WanCodec(vae, torch.bfloat16)
    vae.float()

    codec.set_module(vae)

    assert vae.decoder.conv_in.weight.dtype == torch.bfloat16
    assert vae.encoder.conv_in.weight.dtype == torch.float32


@pytest.mark.parametrize("scale", [1e-9, 1.0, 3e4])
def test_norms_in_bfloat16_are_those_of_diffusers(scale: float) -> None:
    plain, ours = (vae.decoder.norm_out for vae in (build_vae(), WanCodec(build_vae(), torch.bfloat16).vae))
    x = (torch.randn(1, plain.gamma.shape[0], 2, 3, 4, generator=torch.Generator().manual_seed(0)) * scale).bfloat16()

    # It rounds twice more than we do.
    torch.testing.assert_close(ours(x), plain.bfloat16()(x), rtol=0.02, atol=0)


def test_channels_last_changes_no_number(codec: WanCodec) -> None:
    latents = torch.randn(16, 3, 2, 3, generator=torch.Generator().manual_seed(0))
    pixels = torch.rand(3, 9, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    other = WanCodec(build_vae())
    # As on a card.
    for part in (other.vae.encoder, other.vae.decoder):
        _lay_channels_last(part, torch.device("cuda"))

    assert other.vae.decoder.conv_in.weight.is_contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(other.decode(latents), codec.decode(latents), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(other.encode(pixels), codec.encode(pixels), atol=1e-5, rtol=1e-5)
    taps = codec.vae.decoder.conv_in.weight.unbind(2)
    assert all(tap.is_contiguous(memory_format=torch.channels_last) for tap in taps)


@pytest.mark.parametrize("shape", [(3, 8, 16, 16), (3, 9, 12, 16), (3, 9, 16, 20)])
def test_sizes_that_lose_pixels_are_refused(shape: tuple[int, ...], codec: WanCodec) -> None:
    with pytest.raises(RequestError):
        codec.encode(torch.zeros(shape))


def test_cancel_is_seen_between_chunks(codec: WanCodec) -> None:
    chunks = []
    handles = [
        part.register_forward_hook(lambda *_: chunks.append(1)) for part in (codec.vae.encoder, codec.vae.decoder)
    ]

    with pytest.raises(Cancelled, match="encode"):
        codec.encode(torch.zeros(3, 13, 16, 16), cancel=After(2))
    assert all(kept is None for kept in codec.vae._enc_feat_map)
    with pytest.raises(Cancelled, match="decode"):
        codec.decode(torch.zeros(16, 4, 2, 2), cancel=After(1))
    assert all(kept is None for kept in codec.vae._feat_map)
    for handle in handles:
        handle.remove()

    assert len(chunks) == 3
    assert not codec.vae.encoder._forward_pre_hooks
    assert not codec.vae.decoder._forward_pre_hooks
    # Nothing of the broken run is left in what the next one computes.
    assert torch.equal(codec.encode(torch.zeros(3, 1, 16, 16)), codec.encode(torch.zeros(3, 1, 16, 16)))
