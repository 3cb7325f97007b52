"""Compiled blocks: how many graphs they need, and that offloading, caches, LoRAs and quantised layers stay as they are.

Backends "eager" and "aot_eager" trace the same graphs as "inductor" and generate no code.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FirstBlockCacheConfig
from graphs import fresh_counters
from torch import Tensor

from engine.loading.compiling import Compiling, compile_blocks
from engine.loading.lora import load_runtime_lora
from engine.loading.pinned_memory import Arena
from engine.loading.quanto import quantise
from engine.loading.streamer import Streamer
from engine.machine.compiler import find_compiler

#: A graph rotates pairs by real arithmetic, other forwards as complex numbers: they differ in the last bits.
close = partial(torch.testing.assert_close, atol=1e-4, rtol=1e-4)


class Graphs:
    """Counts the graphs that were made since the last look."""

    def __init__(self) -> None:
        self._counters = fresh_counters()
        self._before = 0

    def new(self) -> int:
        total = self._counters["stats"]["unique_graphs"]
        made, self._before = total - self._before, total
        assert not self._counters["graph_break"]
        return int(made)


@pytest.fixture
def graphs() -> Iterator[Graphs]:
    yield Graphs()
    torch._dynamo.reset()


def compiled(model: Any, backend: str = "eager") -> Any:
    compile_blocks(model, Compiling(backend))
    return model


@pytest.mark.parametrize("backend", ["eager", pytest.param("aot_eager", marks=pytest.mark.slow)])
def test_each_number_of_speakers_is_one_graph_for_all_sizes(tiny: Any, graphs: Graphs, backend: str) -> None:
    plain, model, made = tiny.model(), compiled(tiny.model(), backend), []

    # Another picture, another length, and both; then numbers of speakers in turn, as guidance branches have them.
    for speakers, size in (
        *((1, (3, 4, 8)), (1, (3, 8, 6)), (1, (2, 8, 6)), (1, (5, 6, 4))),
        *((2, (3, 4, 8)), (2, (3, 8, 6)), (2, (2, 8, 6)), (2, (5, 6, 4))),
        *((1, (4, 4, 8)), (2, (4, 4, 8)), (1, (3, 4, 8)), (2, (3, 4, 8))),
    ):
        here = replace(tiny, latent_shape=size)
        close(here.run(model, speakers), here.run(plain, speakers))
        made.append(graphs.new())

    assert made == [1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]


@pytest.mark.slow
def test_a_single_frame_is_a_graph_of_its_own(tiny: Any, graphs: Graphs) -> None:
    model = compiled(tiny.model(num_layers=1))
    made = []

    for frames in (3, 1, 1, 4):
        replace(tiny, latent_shape=(frames, 4, 8)).run(model, 1)
        made.append(graphs.new())

    assert made == [1, 1, 0, 0]


def streamed(model: Any) -> Any:
    Streamer(model, "cpu", arena=Arena(2**22, pinned=False)).onload()
    return model


@pytest.mark.slow
def test_streamed_blocks_share_the_graph(tiny: Any, graphs: Graphs) -> None:
    expected = tiny.run(tiny.model(num_layers=4))

    model = streamed(compiled(tiny.model(num_layers=4)))

    for _ in range(2):
        close(tiny.run(model), expected)
    assert graphs.new() == 1


def test_a_step_cache_skips_compiled_blocks(tiny: Any, graphs: Graphs) -> None:
    plain, model = tiny.model(), compiled(tiny.model())
    expected = tiny.run(plain)
    calls: list[int] = []
    forward = model.blocks[1].forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return forward(*args, **kwargs)

    model.blocks[1].forward = counted

    model.enable_cache(FirstBlockCacheConfig(threshold=0.5))
    with model.cache_context("cond"):
        first, second = tiny.run(model), tiny.run(model)
    ran = len(calls)
    model.disable_cache()

    close(first, expected)
    close(second, expected)
    close(tiny.run(model), expected)
    assert ran == 1
    assert graphs.new() == 1


def state_of(layers: int) -> dict[str, Tensor]:
    """Return a LoRA with every kind of change: pairs, whole tensors, biases, norms, modulation, LoKr."""
    random = partial(torch.randn, generator=torch.Generator().manual_seed(5))
    state: dict[str, Tensor] = {}
    for index in range(layers):
        block = f"blocks.{index}"
        state |= {
            f"{block}.attn1.to_q.lora_A.weight": random(2, 24),
            f"{block}.attn1.to_q.lora_B.weight": random(24, 2),
            f"{block}.attn1.to_k.diff": random(24, 24),
            f"{block}.attn1.to_v.diff_b": random(24),
            f"{block}.norm2.diff": random(24),
            f"{block}.diff_m": random(1, 6, 24),
            f"{block}.attn2.to_q.lokr_w1": random(2, 2),
            f"{block}.attn2.to_q.lokr_w2": random(12, 12),
        }
    return state


@pytest.mark.slow
def test_a_lora_that_is_switched_makes_one_graph_for_each_scale(tiny: Any, graphs: Graphs) -> None:
    plain, model, made = tiny.model(), tiny.model(), []
    loras = [load_runtime_lora(one, state_of(2), "turbo") for one in (plain, model)]
    compile_blocks(model, Compiling("eager"))

    for scale in (None, 1.0, None, 1.0, 0.5):
        for lora in loras:
            lora.disable() if scale is None else lora.enable(scale)
        close(tiny.run(model), tiny.run(plain))
        made.append(graphs.new())

    assert made == [1, 1, 0, 0, 1]


@pytest.mark.parametrize(
    ("dtype", "place"),
    [
        pytest.param(torch.int8, streamed, id="int8"),
        pytest.param(torch.float8_e4m3fn, lambda model: model, id="fp8", marks=pytest.mark.slow),
    ],
)
def test_quantised_layers_share_the_graph(tiny: Any, graphs: Graphs, dtype: torch.dtype, place: Any) -> None:
    pytest.importorskip("torchao")
    plain, model = tiny.model(), tiny.model()
    for one in (plain, model):
        for layer in (module for module in one.blocks.modules() if isinstance(module, torch.nn.Linear)):
            kept = quantise(layer.weight.data, dtype).kept(torch.float32)
            layer.weight = torch.nn.Parameter(kept, requires_grad=False)

    model = place(compiled(model))

    close(tiny.run(model), tiny.run(plain))
    assert graphs.new() == 1


def test_compiled_kernels_are_kept_in_the_chosen_folder(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        monkeypatch.setenv(variable, "elsewhere")

    compile_blocks(tiny.model(num_layers=1), Compiling("eager", tmp_path))

    from torch._inductor.runtime.cache_dir_utils import cache_dir, triton_cache_dir

    assert Path(cache_dir()) == tmp_path
    assert Path(triton_cache_dir(0)) == tmp_path / "triton"


@pytest.mark.slow
@pytest.mark.skipif(find_compiler() is None, reason="no C compiler is installed")
def test_generated_kernels_give_the_same_numbers_and_are_kept(
    tiny: Any, tmp_path: Path, graphs: Graphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        monkeypatch.setenv(variable, "elsewhere")
    plain, model = tiny.model(), tiny.model()
    compile_blocks(model, Compiling("inductor", tmp_path))

    for size in ((3, 4, 8), (2, 8, 6)):
        here = replace(tiny, latent_shape=size)
        close(here.run(model), here.run(plain))

    assert graphs.new() == 1
    assert any(path.is_file() for path in tmp_path.rglob("*"))
