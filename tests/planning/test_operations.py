"""The counted work of a plan is what torch counts, and its seconds on a card follow from it."""

from __future__ import annotations

from typing import Any, cast

import pytest

from engine.bench.plan import CASES
from engine.planning.gpus import find_card
from engine.planning.operations import codec_work, forward_work
from engine.planning.parameters import Config, make_sizes, published_sizes
from engine.planning.seconds import forward_seconds


def test_work_counts_the_products_torch_counts() -> None:
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from engine.bench.transformer import build_inputs, build_model

    model = build_model(128, 344, 2, 2, torch.float32, torch.Generator().manual_seed(0)).requires_grad_(False)
    latents, time, conditions = build_inputs(model, (3, 4, 4), 2, torch.Generator().manual_seed(0))
    # The fused kernel of a CPU is none that the counter knows.
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model(latents, time, conditions=conditions)
    work = forward_work(model.config, conditions.latent_shape, value=4, speakers=2)
    # The time embedding runs once a forward, on one row.
    assert work.operations == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_codec_work_counts_the_convolutions_torch_counts() -> None:
    import torch
    from diffusers import AutoencoderKLWan
    from torch.utils.flop_counter import FlopCounterMode

    config: Config = make_sizes(CASES["wide"].configs() | {"vae": {"base_dim": 8, "num_res_blocks": 1}}).configs["vae"]
    vae: Any = cast("Any", AutoencoderKLWan)(base_dim=8, num_res_blocks=1).eval()
    given = {"encoder": torch.zeros(1, 3, 9, 32, 32), "decoder": torch.zeros(1, 16, 3, 4, 4)}
    for side, tensor in given.items():
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            vae.encode(tensor) if side == "encoder" else vae.decode(tensor)
        # torch counts the padding of causal chunks in time as frames.
        assert codec_work(config, side, 9, 32, 32) == pytest.approx(counter.get_total_flops(), rel=0.15)


def test_an_offloaded_forward_takes_the_longer_of_computing_and_moving() -> None:
    a100 = find_card("A100 80 GB")
    assert a100 is not None
    config = published_sizes("wan-14b").configs["transformer"]
    large, small = (forward_work(config, (frames, 56, 112), value=2) for frames in (21, 1))
    assert forward_seconds(a100, large, moved_weights=38 * 10**9) == forward_seconds(a100, large)
    assert forward_seconds(a100, small, moved_weights=38 * 10**9) > 2 * forward_seconds(a100, small)
