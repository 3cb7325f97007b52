"""The embedded model is small, loads through the libraries' own classes, and its parts fit each other."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoTokenizer, CLIPVisionModel, UMT5EncoderModel, Wav2Vec2Model
from whole_tensors import merge_lora

from plugins.families.multitalk.transformer import MultiTalkTransformer3DModel

ROOT = Path(__file__).parents[2]
TINY = ROOT / "engine" / "weights" / "tiny"
EXAMPLES = ROOT / "engine" / "examples"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"scripts_{name}", ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up while it is being made.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def load(cls: Any, component: str) -> Any:
    part = cls.from_pretrained(TINY / component, local_files_only=True, torch_dtype=torch.float32)
    assert not any(parameter.is_meta for parameter in part.parameters())
    return part.eval()


def test_weights_are_small_and_in_small_files() -> None:
    sizes = [path.stat().st_size for path in TINY.rglob("*") if path.is_file()]
    assert sum(sizes) <= 32 * 2**20
    assert max(sizes) <= 8 * 2**20


def test_index_names_every_part_and_the_licence() -> None:
    index = json.loads((TINY / "model_index.json").read_text("utf-8"))
    assert "untrained" not in index
    assert index["license"] == "MIT"
    parts = {path.name for path in TINY.iterdir() if path.is_dir()} - {"loras"}
    assert parts == {key for key, value in index.items() if isinstance(value, list)}


def test_all_tensors_are_kept_in_half_precision_and_finite() -> None:
    for path in TINY.rglob("*.safetensors"):
        for name, tensor in load_file(path).items():
            assert tensor.dtype == torch.float16, (path, name)
            assert tensor.isfinite().all(), (path, name)


@pytest.mark.parametrize(
    "prompt", ['Two people talk, "quoted" = ${x}.', "Grüße aus Köln, schöne Straße", "两个人在公园里交谈", "🎬 emoji"]
)
def test_tokenizer_gives_any_text_back(prompt: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(TINY / "tokenizer", local_files_only=True)
    tokens = tokenizer(prompt)["input_ids"]
    assert tokens[-1] == tokenizer.eos_token_id
    assert tokenizer.pad_token_id not in tokens
    assert tokenizer.decode(tokens, skip_special_tokens=True) == prompt


def test_text_encoder_knows_every_token() -> None:
    tokenizer = AutoTokenizer.from_pretrained(TINY / "tokenizer", local_files_only=True)
    encoder = load(UMT5EncoderModel, "text_encoder")
    assert len(tokenizer) == encoder.config.vocab_size
    assert encoder.config.pad_token_id == tokenizer.pad_token_id


def test_components_fit_each_other_and_the_network_hears_sees_and_reads() -> None:
    transformer = load(MultiTalkTransformer3DModel, "transformer")
    tokenizer = AutoTokenizer.from_pretrained(TINY / "tokenizer", local_files_only=True)
    config, shape = transformer.config, (2, 4, 6)

    def features(prompt: str, picture: float, volume: float) -> dict[str, torch.Tensor]:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        text = load(UMT5EncoderModel, "text_encoder")(ids).last_hidden_state
        pixels = torch.full((1, 3, 224, 224), picture)
        image = load(CLIPVisionModel, "image_encoder")(pixels).last_hidden_state
        wave = volume * torch.sin(torch.arange(8000) * 0.1)[None]
        hidden = load(Wav2Vec2Model, "audio_encoder")(wave, output_hidden_states=True).hidden_states[1:]
        audio = torch.stack(hidden, 2)[:, :5]  # (1, frames, layers, channels)
        windows = audio[:, :, None].expand(-1, -1, config.audio_window, -1, -1)
        return {
            "encoder_hidden_states": text,
            "encoder_hidden_states_image": image,
            "audio_windows": windows.contiguous(),
        }

    noise = torch.randn(1, config.in_channels, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        said = [
            transformer(noise, torch.tensor([500.0]), return_dict=False, **features(*what))[0]
            for what in (("talk", 0.1, 0.5), ("sing", 0.1, 0.5), ("talk", 0.9, 0.5), ("talk", 0.1, 0.0))
        ]
    assert said[0].shape == (1, config.out_channels, *shape)
    assert said[0].isfinite().all()
    for other in said[1:]:
        assert (said[0] - other).abs().max() > 1e-4


def test_autoencoder_keeps_a_picture_it_has_never_seen() -> None:
    vae = load(AutoencoderKLWan, "vae")
    with Image.open(EXAMPLES / "two.png") as picture:
        pixels = torch.tensor(list(picture.convert("RGB").resize((160, 96)).tobytes()), dtype=torch.float32)
    video = pixels.view(1, 1, 96, 160, 3).permute(0, 4, 1, 2, 3).repeat(1, 1, 5, 1, 1) / 127.5 - 1
    with torch.no_grad():
        latents = vae.encode(video).latent_dist.mode()
        pictures = vae.decode(latents).sample
    assert latents.shape == (1, vae.config.z_dim, 2, 12, 20)
    # 25 dB: between the trial's autoencoder and the bar of scripts/evaluate_tiny over many pictures.
    assert ((pictures - video) / 2).square().mean() < 10**-2.5


def test_turbo_lora_changes_what_the_network_says() -> None:
    transformer = load(MultiTalkTransformer3DModel, "transformer")
    state = {name: tensor.clone() for name, tensor in transformer.state_dict().items()}
    coverage = merge_lora(state, load_file(TINY / "loras" / "turbo.safetensors"))
    assert not coverage.unmatched
    assert len(coverage.matched) == sum(".lora_A." in key for key in load_file(TINY / "loras" / "turbo.safetensors"))
    for name in coverage.matched:
        assert not torch.equal(state[name], transformer.state_dict()[name])


def test_demo_inputs_are_small_and_of_the_expected_shape() -> None:
    for name in ("one.png", "two.png"):
        with Image.open(EXAMPLES / name) as picture:
            assert picture.size == (480, 288)
        assert (EXAMPLES / name).stat().st_size < 60_000
    for name in ("one.flac", "left.flac", "right.flac"):
        assert (EXAMPLES / name).stat().st_size < 80_000


def test_pictures_are_drawn_as_committed() -> None:
    drawing = script("make_examples")
    for name, (people, seed) in drawing.PICTURES.items():
        with Image.open(EXAMPLES / name) as committed:
            assert drawing.picture(people, seed).convert("RGB").tobytes() == committed.convert("RGB").tobytes()
