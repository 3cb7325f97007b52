"""LongCat from its folders, a picture and voices to frames: real encoders, codec and network, tiny and random."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from longcat_folder import write_longcat

from engine.network.audio import SAMPLE_RATE, AudioEncoder, audio_windows
from engine.network.codec import WanCodec
from engine.network.text import TextEncoder
from engine.stages.windows import plan_windows
from plugins.families.longcat.canvas import fit_masks, fit_picture, region_masks
from plugins.families.longcat.folders import AvatarFolders, find_folders
from plugins.families.longcat.guidance import AvatarGuidance
from plugins.families.longcat.lora import read_lora
from plugins.families.longcat.schedules import Levels, sigmas
from plugins.families.longcat.text import NEGATIVE_PROMPT
from plugins.families.longcat.versions import VERSIONS
from plugins.families.longcat.voices import encode_tracks, join_tracks, silence
from plugins.families.longcat.walk import denoise_window, finish, hand_over, start_first, start_next
from plugins.families.longcat.weights import load_transformer
from plugins.families.longcat.whisper import load_whisper

SIZE = (64, 96)
WINDOW, MOTION = 13, 5


@dataclass
class Loaded:
    """A model with its encoders."""

    version: str
    distilled: bool
    network: Any
    audio: Any
    text: TextEncoder
    codec: WanCodec

    def video(self, voices: list[Any], *, seed: int = 0, frames: int = 19) -> torch.Tensor:
        """Generate (3, frames, H, W) in -1 .. 1 of a drawn picture with one or two speakers."""
        known, random = VERSIONS[self.version], torch.Generator().manual_seed(seed)
        guidance = AvatarGuidance(1, 1) if self.distilled else AvatarGuidance(known.text_scale, known.audio_scale)
        source = np.random.RandomState(1).randint(0, 255, (70, 100, 3)).astype(np.uint8)
        picture = torch.tensor(fit_picture(source, SIZE)).permute(2, 0, 1)[:, None] / 127.5 - 1
        masks = fit_masks(torch.tensor(region_masks((70, 100))), SIZE) if len(voices) > 1 else None
        features = encode_tracks(known, self.audio, join_tracks(voices, "para"), random)
        texts = {name: self.text.encode(text) for name, text in (("", NEGATIVE_PROMPT), ("cond", "a person speaks"))}
        shown: list[torch.Tensor] = []
        carry = None
        for window in plan_windows(frames, window=WINDOW, motion=MOTION):
            noise = torch.randn(16, 1 + (window.frames - 1) // 4, SIZE[0] // 8, SIZE[1] // 8, generator=random)
            if carry is None:
                start = start_first(noise, self.codec.encode(picture))
            else:
                encoded = self.codec.encode(carry.pixels)
                start = start_next(noise, carry, encoded, keeps_latents=known.keeps_latents, position=3, hidden_range=0)
            heard = audio_windows(features, window.start, window.frames, known.fps, known.feature_rate)
            conditions = {}
            for branch in guidance.branches:
                windows = silence(heard) if branch == "uncond" else heard
                text = texts["cond" if branch == "cond" else ""]
                shape = (start.layout.total, *noise.shape[2:])
                conditions[branch] = self.network.embed_conditions(shape, start.layout, text, windows, masks)
            levels = sigmas(
                self.version,
                8 if self.distilled else 2,
                known.shift,
                distilled=self.distilled,
                continuation=carry is not None,
            )
            latents = finish(start, denoise_window(self.network, start, conditions, Levels(levels), guidance))
            pixels = self.codec.decode(latents)
            carry = hand_over(latents, pixels, MOTION, carry)
            shown.append(pixels[:, window.motion : window.motion + window.keep])
        return torch.cat(shown, dim=1)


def load(root: Path, version: str, *, speakers: int = 1, int8: bool = False, distilled: bool = False) -> Loaded:
    from diffusers import AutoencoderKLWan
    from transformers import AutoTokenizer, UMT5EncoderModel, Wav2Vec2Model

    folders, missing = find_folders(root, version, speakers=speakers, int8=int8, distilled=distilled)
    assert missing == ()
    assert isinstance(folders, AvatarFolders)
    kinds: Any = (AutoTokenizer, UMT5EncoderModel, Wav2Vec2Model, AutoencoderKLWan)
    whisper = version == "1.5"
    return Loaded(
        version,
        distilled,
        load_transformer(
            folders.transformer,
            torch.float32,
            keep_int8=False,
            lora=None if folders.lora is None else read_lora(folders.lora),
        ),
        load_whisper(folders.audio_encoder)
        if whisper
        else AudioEncoder(kinds[2].from_pretrained(folders.audio_encoder).eval()),
        TextEncoder(kinds[0].from_pretrained(folders.tokenizer), kinds[1].from_pretrained(folders.text_encoder), 8),
        WanCodec(kinds[3].from_pretrained(folders.vae).eval()),
    )


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {version: write_longcat(tmp_path_factory.mktemp("longcat"), version) for version in VERSIONS}


def voice(pitch: float) -> Any:
    return (0.2 * np.sin(2 * np.pi * pitch * np.arange(SAMPLE_RATE) / SAMPLE_RATE)).astype(np.float32)


@pytest.mark.parametrize(("version", "speakers"), [("1.0", 1), ("1.0", 2), ("1.5", 1), ("1.5", 2)])
def test_a_voice_moves_the_picture_and_a_seed_gives_the_same_frames(
    roots: dict[str, Path], version: str, speakers: int
) -> None:
    model = load(roots[version], version, speakers=speakers)
    voices = [voice(200 + 50 * index) for index in range(speakers)]

    video, again = model.video(voices), model.video(voices)
    other = model.video([voice(500), *voices[1:]])

    assert video.shape == (3, 19, *SIZE)
    assert video.isfinite().all()
    assert torch.equal(video, again)
    assert (other - video).abs().max() > 1e-3


@pytest.mark.slow
def test_int8_and_distillation_are_read_from_their_files(roots: dict[str, Path]) -> None:
    dense = load(roots["1.5"], "1.5", distilled=True).video([voice(200)], frames=13)
    small = load(roots["1.5"], "1.5", int8=True, distilled=True).video([voice(200)], frames=13)
    plain = load(roots["1.5"], "1.5")
    plain.distilled = True
    without = plain.video([voice(200)], frames=13)

    assert 0 < (small - dense).abs().mean() < (without - dense).abs().mean()
