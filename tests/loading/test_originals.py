"""Wan's own umT5, CLIP and autoencoder files give what their formulas give, written here a second time."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from original_folder import random_state
from torch import Tensor
from torch.nn import functional as F
from whole_tensors import read_part

from engine.errors import SourceError
from engine.loading.checkpoint import build_empty
from engine.loading.layout import ComponentLayout
from engine.rehearsal import published

State = dict[str, Tensor]
TOLERANCE = 1e-5


def save(state: dict[str, Any], path: Path) -> ComponentLayout:
    torch.save(state, path)
    return ComponentLayout("original", path.parent, (path,))


def linear(state: State, name: str, given: Tensor) -> Tensor:
    return F.linear(given, state[f"{name}.weight"], state.get(f"{name}.bias"))


# --- umT5 -------------------------------------------------------------------------------------------------------------


def umt5_buckets(length: int) -> Tensor:
    """Sixteen buckets a direction: eight exact ones, then logarithmic ones up to a distance of 128."""
    distance = torch.arange(length)[None] - torch.arange(length)[:, None]
    far = 8 + (torch.log(distance.abs().clamp(min=1) / 8) / math.log(128 / 8) * 8).long()
    return torch.where(distance.abs() < 8, distance.abs(), far.clamp(max=15)) + 16 * (distance > 0)


def umt5_forward(state: State, ids: Tensor, heads: int, layers: int) -> Tensor:
    def norm(name: str, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * state[f"{name}.weight"]

    x = state["token_embedding.weight"][ids]
    for block in (f"blocks.{index}" for index in range(layers)):
        normed = norm(f"{block}.norm1", x)
        q, k, v = (
            linear(state, f"{block}.attn.{part}", normed).view(len(ids), heads, -1).transpose(0, 1) for part in "qkv"
        )
        bias = state[f"{block}.pos_embedding.embedding.weight"][umt5_buckets(len(ids))].permute(2, 0, 1)
        attended = (q @ k.mT + bias).softmax(-1) @ v
        x = x + linear(state, f"{block}.attn.o", attended.transpose(0, 1).flatten(1))
        normed = norm(f"{block}.norm2", x)
        gate = F.gelu(linear(state, f"{block}.ffn.gate.0", normed), approximate="tanh")
        x = x + linear(state, f"{block}.ffn.fc2", linear(state, f"{block}.ffn.fc1", normed) * gate)
    return norm("norm", x)


def test_umt5_file_gives_what_its_formula_gives(tmp_path: Path) -> None:
    state = random_state(published.umt5(vocabulary=40, dim=32, ffn=48, heads=4, layers=3))
    ids = torch.arange(3, 33)

    model = read_part("text_encoder", save(state, tmp_path / "models_t5_umt5-xxl-enc-bf16.pth"), torch.float32)
    with torch.no_grad():
        features = model(input_ids=ids[None], attention_mask=torch.ones(1, len(ids))).last_hidden_state[0]

    torch.testing.assert_close(features, umt5_forward(state, ids, heads=4, layers=3), atol=TOLERANCE, rtol=TOLERANCE)


# --- CLIP -------------------------------------------------------------------------------------------------------------


def clip_forward(state: State, pixels: Tensor, heads: int, layers: int) -> Tensor:
    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-5)

    weight = state["visual.patch_embedding.weight"]
    patches = F.conv2d(pixels[None], weight, stride=weight.shape[-1])[0].flatten(1).T
    x = torch.cat([state["visual.cls_embedding"][0], patches]) + state["visual.pos_embedding"][0]
    x = norm("visual.pre_norm", x)
    for layer in (f"visual.transformer.{index}" for index in range(layers - 1)):
        joint = linear(state, f"{layer}.attn.to_qkv", norm(f"{layer}.norm1", x))
        q, k, v = joint.view(len(x), 3, heads, -1).permute(1, 2, 0, 3)
        attended = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1) @ v
        x = x + linear(state, f"{layer}.attn.proj", attended.transpose(0, 1).flatten(1))
        x = x + linear(state, f"{layer}.mlp.2", F.gelu(linear(state, f"{layer}.mlp.0", norm(f"{layer}.norm2", x))))
    return x


def test_clip_file_gives_what_its_formula_gives(tmp_path: Path) -> None:
    state = random_state(published.clip(dim=160, layers=3, tokens=5, out=8))
    unused = {"log_scale": torch.ones(()), "textual.token_embedding.weight": torch.ones(4, 4)}
    pixels = torch.randn(3, 28, 28, generator=torch.Generator().manual_seed(1))

    path = tmp_path / "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"
    model = read_part("image_encoder", save(state | unused, path), torch.float32)
    with torch.no_grad():
        features = model(pixel_values=pixels[None], output_hidden_states=True).hidden_states[-2][0]

    torch.testing.assert_close(features, clip_forward(state, pixels, heads=2, layers=3), atol=TOLERANCE, rtol=TOLERANCE)


# --- the autoencoder, for one frame: causal layers see nothing else, and time is neither halved nor doubled -----------


class OneFrame:
    def __init__(self, state: State) -> None:
        self.state = state

    def convolve(self, name: str, x: Tensor, **how: Any) -> Tensor:
        weight = self.state[f"{name}.weight"]
        # Of a kernel over time only the last tap meets the frame.
        weight = weight[:, :, -1] if weight.ndim == 5 else weight
        return F.conv2d(x, weight, self.state[f"{name}.bias"], **({"padding": weight.shape[-1] // 2} | how))

    def norm(self, name: str, x: Tensor) -> Tensor:
        gain: Tensor = self.state[f"{name}.gamma"].view(1, -1, 1, 1) * x.shape[1] ** 0.5
        return F.normalize(x, dim=1) * gain

    def residual(self, name: str, x: Tensor) -> Tensor:
        kept = self.convolve(f"{name}.shortcut", x) if f"{name}.shortcut.weight" in self.state else x
        x = self.convolve(f"{name}.residual.2", F.silu(self.norm(f"{name}.residual.0", x)))
        return kept + self.convolve(f"{name}.residual.6", F.silu(self.norm(f"{name}.residual.3", x)))

    def middle(self, name: str, x: Tensor) -> Tensor:
        x = self.residual(f"{name}.0", x)
        q, k, v = self.convolve(f"{name}.1.to_qkv", self.norm(f"{name}.1.norm", x)).flatten(2).chunk(3, dim=1)
        attended = v @ (q.mT @ k / math.sqrt(q.shape[1])).softmax(-1).mT
        x = x + self.convolve(f"{name}.1.proj", attended.view_as(x))
        return self.residual(f"{name}.2", x)

    def head(self, name: str, x: Tensor) -> Tensor:
        return self.convolve(f"{name}.2", F.silu(self.norm(f"{name}.0", x)))

    def encode(self, x: Tensor) -> Tensor:
        x = self.convolve("encoder.conv1", x)
        for index in range(11):
            name = f"encoder.downsamples.{index}"
            if index in (2, 5, 8):
                x = self.convolve(f"{name}.resample.1", F.pad(x, (0, 1, 0, 1)), stride=2, padding=0)
            else:
                x = self.residual(name, x)
        x = self.head("encoder.head", self.middle("encoder.middle", x))
        return self.convolve("conv1", x).chunk(2, dim=1)[0]

    def decode(self, z: Tensor) -> Tensor:
        x = self.middle("decoder.middle", self.convolve("decoder.conv1", self.convolve("conv2", z)))
        for index in range(15):
            name = f"decoder.upsamples.{index}"
            if index in (3, 7, 11):
                x = self.convolve(f"{name}.resample.1", F.interpolate(x, scale_factor=2, mode="nearest-exact"))
            else:
                x = self.residual(name, x)
        return self.head("decoder.head", x)


def test_vae_file_gives_what_its_formula_gives(tmp_path: Path) -> None:
    state = random_state(published.vae(dim=4))
    pixels = torch.randn(1, 3, 16, 24, generator=torch.Generator().manual_seed(1))

    vae = read_part("vae", save(state, tmp_path / "Wan2.1_VAE.pth"), torch.float32)
    with torch.no_grad():
        latents = vae.encode(pixels[:, :, None]).latent_dist.mode()
        decoded = vae.decode(latents).sample

    theirs = OneFrame(state).encode(pixels)
    torch.testing.assert_close(latents[:, :, 0], theirs, atol=TOLERANCE, rtol=TOLERANCE)
    expected = OneFrame(state).decode(theirs).clamp(-1, 1)
    torch.testing.assert_close(decoded[:, :, 0], expected, atol=TOLERANCE, rtol=TOLERANCE)


# --- what is wrong with a file ----------------------------------------------------------------------------------------


def test_weights_come_in_the_dtype_asked_for_and_in_memory_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "models_t5.pth"
    state = random_state(published.umt5(vocabulary=4, dim=8, ffn=8, heads=2, layers=1))
    part = save({name: tensor.bfloat16() for name, tensor in state.items()}, path)
    model = read_part("text_encoder", part, torch.bfloat16)

    # Whoever replaces the file must not change the model.
    path.write_bytes(bytes(path.stat().st_size))

    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert torch.equal(model.shared.weight, state["token_embedding.weight"].bfloat16())
    assert model.encoder.embed_tokens.weight is model.shared.weight


SMALL = {"vocabulary": 4, "dim": 8, "ffn": 8, "heads": 2, "layers": 2}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"blocks.1.attn.q.weight": None}, r"lack encoder\.block\.1\.layer\.0\.SelfAttention\.q\.weight"),
        ({"blocks.1.attn.q.weight": (8, 9)}, r"another shape of encoder\.block\.1\.layer\.0\.SelfAttention\.q\.weight"),
        ({"stranger": (1,)}, r"no tensor of umT5's encoder is named 'stranger'"),
        ({"token_embedding.weight": None}, r"holds no 'token_embedding\.weight'"),
    ],
)
def test_a_file_with_other_tensors_is_named_with_them(
    tmp_path: Path, change: dict[str, tuple[int, ...] | None], told: str
) -> None:
    shapes = {name: shape for name, shape in (published.umt5(**SMALL) | change).items() if shape}

    with pytest.raises(SourceError, match=rf"models_t5\.pth.*{told}"):
        build_empty("text_encoder", save(random_state(shapes), tmp_path / "models_t5.pth"))


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("run by a pickle",)


def test_a_file_that_would_run_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    part = save({"token_embedding.weight": Payload()}, tmp_path / "models_t5.pth")

    with pytest.raises(SourceError, match=r"models_t5\.pth cannot be read"):
        build_empty("text_encoder", part)

    assert capsys.readouterr().out == ""


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "models_t5.pth"
    save(random_state(published.umt5(**SMALL)), path)
    path.write_bytes(path.read_bytes()[:-100])

    with pytest.raises(SourceError, match=r"models_t5\.pth cannot be read"):
        build_empty("text_encoder", ComponentLayout("original", tmp_path, (path,)))


def test_what_was_saved_before_torch_1_6_is_read(tmp_path: Path) -> None:
    path = tmp_path / "Wan2.1_VAE.pth"
    torch.save(random_state(published.vae(dim=4)), path, _use_new_zipfile_serialization=False)

    model = read_part("vae", ComponentLayout("original", tmp_path, (path,)), torch.float32)

    assert not any(parameter.is_meta for parameter in model.parameters())
