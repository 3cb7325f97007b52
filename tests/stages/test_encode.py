"""Conditions of a window: what the network is shown in which continuation style and guidance branch."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_folder import write_folder
from torch import Tensor

from engine.data import Conditions, EncodeOptions, Inputs, Window
from engine.errors import Cancelled, ConfigError
from engine.media.color import color_statistics
from engine.stages.encode import Conditioning, PictureCache, encode_text, encode_voices, to_pixels
from plugins.families.multitalk.conditions import encode, frame_mask
from plugins.families.multitalk.model import MultiTalkModel, load_multitalk

ALL = ("cond", "drop_text", "drop_audio", "uncond")
FIRST = Window(index=0, start=0, frames=9, motion=0, keep=9)
LATER = Window(index=1, start=4, frames=9, motion=5, keep=4)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> MultiTalkModel:
    folder: Path = tmp_path_factory.mktemp("weights")
    return load_multitalk(write_folder(folder), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def inputs() -> Inputs:
    random = np.random.RandomState(0)
    masks = np.zeros((3, 4, 6), np.float32)
    masks[0, :, :2], masks[1, :, 4:], masks[2, :, 2:4] = 1, 1, 1
    voices = tuple(random.randn(16000).astype(np.float32) for _ in range(2))
    return Inputs(random.randint(0, 256, (32, 48, 3)).astype(np.uint8), voices, masks, np.zeros((0, 2), np.float32))


@pytest.fixture(scope="module")
def history() -> Tensor:
    return torch.rand(3, 5, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1


def run(
    model: MultiTalkModel,
    inputs: Inputs,
    window: Window,
    style: str,
    history: Tensor | None,
    picture: PictureCache | None = None,
    cancel: threading.Event | None = None,
) -> Conditions:
    conditioning = Conditioning(
        encode_text(model, "a person speaks", "still face", ALL),
        encode_voices(model, inputs.voices, 25.0),
        color_statistics(to_pixels(inputs.image)),
        picture or PictureCache(),
    )
    options = EncodeOptions(branches=ALL, style=style, fps=25.0, native_fps=25.0)
    return encode(model, inputs, window, conditioning, options, history=history, cancel=cancel)


def overheard(encoder: Any, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return a list that fills with what `encoder` is given."""
    given: list[Any] = []
    encode = encoder.encode

    def listen(thing: Any, **more: Any) -> Any:
        given.append(thing)
        return encode(thing, **more)

    monkeypatch.setattr(encoder, "encode", listen)
    return given


@pytest.mark.parametrize(
    ("known", "frames", "wanted"),
    [(1, 9, [[1, 0, 0]] * 4), (5, 9, [[1, 1, 0]] * 4), (1, 1, [[1]] * 4), (9, 9, [[1, 1, 1]] * 4)],
)
def test_frame_mask_groups_frames_by_latent_frame(known: int, frames: int, wanted: list[list[int]]) -> None:
    assert frame_mask(known, frames, 4).tolist() == wanted


def test_pixels_run_from_minus_one_to_one() -> None:
    pixels = to_pixels(np.array([[[0, 255, 51]]], np.uint8))

    assert pixels.flatten().tolist() == pytest.approx([-1, 1, -0.6])


def test_the_first_window_shows_the_picture_and_grey(model: MultiTalkModel, inputs: Inputs) -> None:
    conditions = run(model, inputs, FIRST, "multitalk", None)
    frames = torch.cat([to_pixels(inputs.image)[:, None], torch.zeros(3, 8, 32, 48)], dim=1)

    assert conditions.motion is None
    assert conditions.latents.shape == (20, 3, 4, 6)
    torch.testing.assert_close(conditions.latents[4:], model.codec.encode(frames), atol=1e-6, rtol=0)
    assert set(conditions.branches) == set(ALL)


def test_multitalk_goes_on_from_the_history(
    model: MultiTalkModel, inputs: Inputs, history: Tensor, monkeypatch: Any
) -> None:
    shown = overheard(model.image, monkeypatch)

    conditions = run(model, inputs, LATER, "multitalk", history)

    frames = torch.cat([history, torch.zeros(3, 4, 32, 48)], dim=1)
    latents = model.codec.encode(frames)
    assert torch.equal(conditions.latents[4:], latents)
    assert conditions.latents[:4, :, 0, 0].tolist() == [[1, 1, 0]] * 4
    assert conditions.motion is not None
    assert not conditions.motion.clean
    assert torch.equal(conditions.motion.latents, latents[:, :2])
    assert torch.equal(shown[0], history[:, -1])


@pytest.mark.parametrize("window", [FIRST, LATER], ids=["first", "later"])
def test_infinitetalk_keeps_the_picture_and_moves_on_clean(
    window: Window, model: MultiTalkModel, inputs: Inputs, history: Tensor, monkeypatch: Any
) -> None:
    shown = overheard(model.image, monkeypatch)
    before = history if window is LATER else None

    conditions = run(model, inputs, window, "infinitetalk", before)

    picture = to_pixels(inputs.image)
    assert conditions.latents[:4, :, 0, 0].tolist() == [[1, 0, 0]] * 4
    frames = torch.cat([picture[:, None], torch.zeros(3, 8, 32, 48)], dim=1)
    assert torch.equal(conditions.latents[4:], model.codec.encode(frames))
    assert conditions.motion is not None
    assert conditions.motion.clean
    wanted = model.codec.encode(picture[:, None] if before is None else before)
    assert torch.equal(conditions.motion.latents, wanted)
    assert torch.equal(shown[0], picture)


def test_what_all_windows_are_shown_is_made_once_a_request(
    model: MultiTalkModel, inputs: Inputs, history: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    windows = [FIRST, LATER, LATER, Window(index=3, start=8, frames=5, motion=1, keep=4)]
    alone = [run(model, inputs, window, "infinitetalk", history if window.index else None) for window in windows]
    pictures, films, cache = overheard(model.image, monkeypatch), overheard(model.codec, monkeypatch), PictureCache()

    together = [
        run(model, inputs, window, "infinitetalk", history if window.index else None, cache) for window in windows
    ]

    assert len(pictures) == 1
    # The picture before grey, for each length; and what went before, for each window.
    assert [film.shape[1] for film in films] == [9, 1, 5, 5, 5, 5]
    for ours, theirs in zip(together, alone, strict=True):
        assert torch.equal(ours.latents, theirs.latents)
        assert ours.motion is not None
        assert theirs.motion is not None
        assert torch.equal(ours.motion.latents, theirs.motion.latents)
        for branch in ALL:
            assert torch.equal(ours.branches[branch].context, theirs.branches[branch].context)


def test_windows_that_are_shown_the_one_before_share_nothing(
    model: MultiTalkModel, inputs: Inputs, history: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures, films, cache = overheard(model.image, monkeypatch), overheard(model.codec, monkeypatch), PictureCache()

    for before in (history, -history):
        run(model, inputs, LATER, "multitalk", before, cache)

    assert len(pictures) == len(films) == 2


def test_branches_drop_what_their_name_says(model: MultiTalkModel, inputs: Inputs) -> None:
    branches = run(model, inputs, FIRST, "multitalk", None).branches

    assert torch.equal(branches["cond"].context, branches["drop_audio"].context)
    assert torch.equal(branches["drop_text"].context, branches["uncond"].context)
    assert not torch.equal(branches["cond"].context, branches["drop_text"].context)
    assert torch.equal(branches["cond"].audio, branches["drop_text"].audio)
    assert torch.equal(branches["drop_audio"].audio, branches["uncond"].audio)
    # Silence is one speaker's; nobody is told apart in it.
    assert branches["cond"].audio.shape[1] == 2 * branches["uncond"].audio.shape[1]
    assert branches["cond"].speakers is not None
    assert branches["uncond"].speakers is None


def test_a_window_hears_its_own_time(model: MultiTalkModel, inputs: Inputs) -> None:
    whole = run(model, inputs, Window(0, 0, 13, 0, 13), "multitalk", None).branches["cond"].audio
    later = run(model, inputs, LATER, "multitalk", None).branches["cond"].audio

    # Latent frame 2 of a window from frame 4 on is latent frame 3 of one from frame 0 on.
    torch.testing.assert_close(later[2], whole[3], atol=1e-5, rtol=0)
    assert not torch.allclose(later[2], whole[2])


def test_the_negative_prompt_is_encoded_only_where_it_is_needed(model: MultiTalkModel, monkeypatch: Any) -> None:
    prompts = overheard(model.text, monkeypatch)

    assert encode_text(model, "a face", "still", ("cond", "drop_audio")).negative is None
    assert encode_text(model, "a face", "still", ("cond", "drop_text")).negative is not None
    assert prompts == ["a face", "a face", "still"]


def test_voices_become_features_at_the_native_rate(model: MultiTalkModel, inputs: Inputs) -> None:
    assert encode_voices(model, inputs.voices, 25.0).shape == (2, 25, 2, 16)


def test_read_only_inputs_are_taken(model: MultiTalkModel, inputs: Inputs, recwarn: pytest.WarningsRecorder) -> None:
    arrays: list[Any] = [inputs.image, inputs.masks, *inputs.voices]
    for array in arrays:
        array.flags.writeable = False

    run(model, inputs, FIRST, "multitalk", None)

    assert not [warning for warning in recwarn if "not writable" in str(warning.message)]


def test_cancel_is_seen(model: MultiTalkModel, inputs: Inputs) -> None:
    token = threading.Event()
    token.set()

    with pytest.raises(Cancelled, match="encode"):
        run(model, inputs, FIRST, "multitalk", None, cancel=token)
    with pytest.raises(Cancelled, match="encode"):
        encode_voices(model, inputs.voices, 25.0, cancel=token)


def test_an_unknown_style_is_named(model: MultiTalkModel, inputs: Inputs) -> None:
    with pytest.raises(ConfigError, match="infinitetalk") as caught:
        run(model, inputs, FIRST, "endlesstalk", None)

    assert caught.value.field == "continuation.style"
