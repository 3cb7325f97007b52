"""Sparse attention: its pattern, its computation, and the grid that the network hands to it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from engine.data import AttentionSite, TokenGrid
from engine.errors import ConfigError
from engine.network.attention import SelfAttentionProcessor, set_own_self_attention, set_self_attention_backend
from plugins.attention.radial import Radial, RadialConfig, begin, parts_of

#: 480p, 81 frames: 21 latent frames of 52 x 28 tokens.
FULL = TokenGrid(21, 52, 28, layer=1, layers=40)


def dense(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2)


def noise(grid: TokenGrid) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    shape = (1, grid.frames * grid.frame, 2, 8)
    return tuple(torch.randn(shape, generator=random) for _ in range(3))  # type: ignore[return-value]


def masked(backend: Radial, inputs: tuple[Tensor, Tensor, Tensor], grid: TokenGrid, parts: int) -> Tensor:
    """Attention with a mask of all pairs, which says for each pair of tokens whether it counts."""
    total, frame = grid.frames * grid.frame, grid.frame
    mask = torch.zeros(total, total, dtype=torch.bool)
    for one in range(total):
        mine, place = divmod(one, frame)
        part = place * parts // frame
        for other in range(grid.frames):
            width = backend.width(mine, other, frame, parts)
            start = other * frame + begin(part, parts, frame, width)
            mask[one, start : start + width] = True
    assert mask.float().mean() == pytest.approx(backend.share(grid))
    return dense(*inputs, mask)


@pytest.mark.parametrize(
    ("settings", "grid"),
    [
        ({}, TokenGrid(9, 4, 3, layer=1, layers=2)),
        ({"parts": 3, "near": 2, "first": 2}, TokenGrid(8, 3, 3, layer=4, layers=5)),
        # Seven tokens cannot be divided: a frame is one part.
        ({"dense_layers": 0}, TokenGrid(6, 1, 7)),
        ({"first": 0}, TokenGrid(2, 2, 2, layer=1, layers=2)),
    ],
)
def test_the_result_is_that_of_dense_attention_with_the_pattern_as_mask(settings: Any, grid: TokenGrid) -> None:
    backend = Radial(RadialConfig(**settings))
    inputs = noise(grid)
    parts = parts_of(grid.frame, backend._config.parts)
    attended = backend.attend(*inputs, grid)
    # Rounding of float32.
    torch.testing.assert_close(attended, masked(backend, inputs, grid, parts), atol=1e-6, rtol=1e-5)


def test_first_layers_stay_dense() -> None:
    backend = Radial(RadialConfig(dense_layers=2))
    inputs = noise(TokenGrid(9, 4, 3))
    for layer, same in ((0, True), (1, True), (2, False)):
        assert torch.equal(backend.attend(*inputs, TokenGrid(9, 4, 3, layer, 3)), dense(*inputs)) == same


def test_a_window_of_the_real_model_computes_less_than_half_of_the_pairs() -> None:
    assert Radial(RadialConfig()).share(FULL) == pytest.approx(0.427, abs=0.001)
    assert Radial(RadialConfig(parts=8)).share(FULL) == pytest.approx(0.379, abs=0.001)
    assert Radial(RadialConfig(near=20)).share(FULL) == 1


def test_a_part_sees_its_own_place_in_every_frame() -> None:
    for parts in (1, 2, 4, 8):
        for width in (16 // parts, 8, 16):
            for part in range(parts):
                start = begin(part, parts, 16, max(width, 16 // parts))
                assert start <= part * 16 // parts
                assert start + max(width, 16 // parts) >= (part + 1) * 16 // parts


def test_it_says_that_the_video_differs_and_names_its_settings() -> None:
    choice = Radial(RadialConfig(near=2)).choose(AttentionSite("cpu", "float32"))
    assert choice.kernel == "radial(parts=4, near=2, first=1, dense_layers=1)"
    assert "leaves out far tokens" in choice.note
    assert choice.attend is not None


def test_it_is_refused_with_several_processes_and_with_values_out_of_range() -> None:
    with pytest.raises(ConfigError, match="several processes") as caught:
        Radial(RadialConfig()).choose(AttentionSite("cpu", "float32", processes=2))
    assert caught.value.field == "attention"
    with pytest.raises(ConfigError, match="near"):
        Radial(RadialConfig(near=0))


def test_the_network_hands_its_grid_to_an_own_computation(tiny: Any) -> None:
    model = tiny.model()
    seen: list[TokenGrid] = []

    def attend(query: Tensor, key: Tensor, value: Tensor, grid: TokenGrid) -> Tensor:
        assert query.shape[:2] == (1, grid.frames * grid.frame)
        seen.append(grid)
        return dense(query, key, value)

    frames, height, width = tiny.latent_shape
    latents = torch.randn(1, model.config.in_channels, frames, height, width)
    inputs = {"hidden_states": latents, "timestep": torch.tensor([500.0])}
    with torch.no_grad():
        inputs["conditions"] = model.embed_conditions(tiny.latent_shape, **tiny.conditions())
        before = model(**inputs).sample
        set_own_self_attention(model, attend)
        own = model(**inputs).sample
    layers = len(model.blocks)
    assert seen == [TokenGrid(frames, height // 2, width // 2, layer, layers) for layer in range(layers)]
    torch.testing.assert_close(own, before)
    set_self_attention_backend(model, "native")
    assert all(
        module.processor.attend is None
        for module in model.modules()
        if isinstance(getattr(module, "processor", None), SelfAttentionProcessor)
    )
