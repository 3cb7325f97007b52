"""Weights in float8 and int8 with scales are the products, and wrong scales are named."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from small_weights import AUDIO, E4M3, E5M2, WANTED, WEIGHTS, hold_to, put, save, transformer
from steering import make_quantiser
from torch import Tensor

from engine.assembly.compose import compose
from engine.assembly.estimates import _is_scaled, make_load
from engine.errors import SourceError
from engine.loading.scaled import Scaled, spread
from engine.planning import memory
from engine.planning.memory import Work
from engine.planning.parameters import published_sizes
from engine.plugin.manager import installed
from plugins.families.multitalk.model import load_multitalk

# --- float8 and int8 with scales --------------------------------------------------------------------------------------


def is_packed(name: str, tensor: Tensor) -> bool:
    return name.startswith("blocks.") and name.endswith(".weight") and tensor.ndim == 2


def pack(
    state: Mapping[str, Tensor],
    scale: Callable[[Tensor], Tensor],
    *,
    end: str = ".scale_weight",
    dtype: torch.dtype = E4M3,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return a file's tensors with scales beside the weights, and the weights that they stand for.

    What they stand for is worked out here value by value, not with the engine's own code.
    """
    stored: dict[str, Tensor] = {}
    meant: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if not is_packed(name, tensor):
            stored[name] = meant[name] = tensor
            continue
        factors = scale(tensor)
        rows, columns = tensor.shape
        grid = factors.reshape(factors.shape[0], -1) if factors.ndim > 1 else factors.reshape(-1, 1)
        per_row, per_column = -(-rows // grid.shape[0]), -(-columns // grid.shape[1])
        whole = torch.tensor(
            [[float(grid[row // per_row, column // per_column]) for column in range(columns)] for row in range(rows)]
        )
        most = 127.0 if dtype == torch.int8 else torch.finfo(dtype).max
        data = (tensor / whole).clamp(-most, most)
        kept = (data.round() if dtype == torch.int8 else data).to(dtype)
        stored[name], stored[name.removesuffix(".weight") + end] = kept, factors
        meant[name] = kept.float() * whole
    return stored, meant


def tensorwise(tensor: Tensor) -> Tensor:
    return tensor.abs().amax() / 100


def rowwise(tensor: Tensor) -> Tensor:
    return tensor.abs().amax(dim=1, keepdim=True).clamp_min(1e-6) / 100


def blockwise(side: int) -> Callable[[Tensor], Tensor]:
    def scale(tensor: Tensor) -> Tensor:
        rows, columns = (-(-size // side) for size in tensor.shape)
        return torch.linspace(0.005, 0.02, rows * columns).view(rows, columns)

    return scale


KINDS: dict[str, dict[str, Any]] = {
    "ComfyUI, one number": {"scale": lambda tensor: tensorwise(tensor).reshape(())},
    "ComfyUI, a list of one": {"scale": lambda tensor: tensorwise(tensor).reshape(1)},
    "Kijai, a row": {"scale": rowwise},
    "Kijai, a row in one dimension": {"scale": lambda tensor: rowwise(tensor).flatten()},
    "a column": {"scale": lambda tensor: tensor.abs().amax(dim=0, keepdim=True).clamp_min(1e-6) / 100},
    "lightx2v, float8": {"scale": rowwise, "end": ".weight_scale"},
    "lightx2v, int8": {"scale": rowwise, "end": ".weight_scale", "dtype": torch.int8},
    "float8_e5m2": {"scale": lambda tensor: tensorwise(tensor).reshape(()), "dtype": E5M2},
    "blocks of 8, which divide": {"scale": blockwise(8), "end": ".weight_scale_inv"},
    "blocks of 10, which do not": {"scale": blockwise(10), "end": ".weight_scale_inv"},
    "a scale in 16 bits": {"scale": lambda tensor: rowwise(tensor).bfloat16()},
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_weights_with_scales_are_the_products(folder: Path, kind: Mapping[str, Any]) -> None:
    stored, meant = pack(WEIGHTS, **kind)
    marks = {"scaled_fp8": torch.zeros(2, dtype=E4M3), "blocks.0.self_attn.q.scale_input": torch.ones(())}
    put(folder, {f"model.diffusion_model.{name}": tensor for name, tensor in (stored | marks).items()})

    hold_to(transformer(folder), meant | AUDIO)
    # And near the ones they were made of: 8 bits leave a few per cent.
    name = "blocks.0.ffn.0.weight"
    assert float((meant[name] - WEIGHTS[name]).norm() / WEIGHTS[name].norm()) < (0.2 if "blocks" in str(kind) else 0.1)


def test_the_scale_counts_where_the_values_were_cast_to_more_bits(folder: Path) -> None:
    stored, meant = pack(WEIGHTS, tensorwise)
    put(
        folder, {name: tensor.to(torch.bfloat16) if tensor.dtype == E4M3 else tensor for name, tensor in stored.items()}
    )
    hold_to(transformer(folder), meant | AUDIO)


def test_audio_weights_with_scales_lie_over_plain_ones(folder: Path) -> None:
    put(folder, WEIGHTS)
    stored, meant = pack(AUDIO, tensorwise)
    save(stored | {"scaled_fp8": torch.zeros(0, dtype=E4M3)}, folder / "MeiGen-MultiTalk" / "multitalk.safetensors")
    hold_to(transformer(folder), WEIGHTS | meant)


def test_float8_without_scales_is_taken_as_it_is_though_it_bears_the_mark(folder: Path) -> None:
    plain = {name: tensor.to(E4M3) if is_packed(name, tensor) else tensor for name, tensor in WEIGHTS.items()}
    put(folder, plain | {"scaled_fp8": torch.zeros(0, dtype=E4M3)})
    hold_to(transformer(folder), plain | AUDIO)


def test_weights_with_scales_can_be_kept_as_int8(folder: Path) -> None:
    pytest.importorskip("torchao")
    stored, _ = pack(WEIGHTS, rowwise)
    put(folder, stored)
    model: Any = load_multitalk(
        folder, device="cpu", dtype="bfloat16", quant="int8", quantiser=make_quantiser("int8"), wanted=WANTED
    )
    assert model.transformer.blocks[0].attn1.to_q.weight.dtype == torch.bfloat16
    assert hasattr(model.transformer.blocks[0].attn1.to_q.weight, "qdata")


@pytest.mark.parametrize(
    ("shape", "weight"), [((3,), (8, 8)), ((2, 3), (4, 4)), ((8, 8, 2), (8, 8)), ((0,), (8, 8)), ((4,), (4, 2, 2))]
)
def test_a_scale_that_belongs_to_no_such_weight_is_refused(shape: tuple[int, ...], weight: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="a scale of shape"):
        Scaled(torch.zeros(weight, dtype=E4M3), torch.ones(shape))


def test_a_scale_that_does_not_fit_is_named_before_anything_is_read(folder: Path) -> None:
    stored, _ = pack(WEIGHTS, tensorwise)
    put(folder, stored | {"blocks.1.ffn.0.scale_weight": torch.ones(5)})
    with pytest.raises(SourceError, match=r"blocks\.1\.ffn\.0\.weight has a scale of shape \(5,\)"):
        load_multitalk(folder, device="cpu", dtype="float32", wanted=WANTED)


def test_blocks_are_spread_to_their_rows_and_columns() -> None:
    scale = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    expected = torch.tensor([[1.0, 1, 2], [1, 1, 2], [3, 3, 4]])
    assert torch.equal(spread(scale, (3, 3)), expected)
    assert torch.equal(spread(scale[:, :, None], (3, 3)), expected)


def note(**told: Any) -> Tensor:
    return torch.frombuffer(bytearray(json.dumps(told).encode()), dtype=torch.uint8)


def test_comfyuis_notes_are_heeded(folder: Path) -> None:
    stored, meant = pack(WEIGHTS, tensorwise, end=".weight_scale")
    path = put(folder, stored | {"blocks.0.ffn.0.comfy_quant": note(format="float8_e4m3fn")})
    hold_to(transformer(folder), meant | AUDIO)
    for told in ({"format": "nvfp4"}, {"format": "int8_tensorwise", "convrot": True}, {}):
        save(stored | {"blocks.0.ffn.0.comfy_quant": note(**told)}, path)
        with pytest.raises(SourceError, match="which is not supported"):
            transformer(folder)
    layers = json.dumps({"layers": {"blocks.0.ffn.0": {"format": "mxfp8"}}})
    save(stored, path, _quantization_metadata=layers)
    with pytest.raises(SourceError, match=r"blocks\.0\.ffn\.0 quantised as 'mxfp8'"):
        transformer(folder)
    save(stored | {"blocks.0.ffn.0.comfy_quant": torch.zeros(20, dtype=torch.uint8)}, path)
    with pytest.raises(SourceError, match="note on quantisation that cannot be read"):
        transformer(folder)


def test_a_plan_knows_that_such_weights_become_dense_in_the_hosts_memory(folder: Path) -> None:
    config = compose(["model=multitalk", "device=cuda", "dtype=bfloat16", "memory=none"])
    stored, _ = pack(WEIGHTS, tensorwise)
    path = put(folder, WEIGHTS)
    assert not _is_scaled(config, folder)
    save(stored, path)
    assert _is_scaled(config, folder)
    sizes = published_sizes("wan-14b")
    dense = sizes.counts["transformer"].bytes(2)
    work = Work(frames=81, height=480, width=832, latents=(21, 60, 104), speakers=1, passes=1, windows=1, seconds=3.3)
    plain, scaled = (
        memory.stages(
            sizes, make_load(config, installed(), device="cuda", dtype="bfloat16", converted=True, scaled=scaled), work
        )[0].total
        for scaled in (False, True)
    )
    assert plain < dense < scaled < dense * 1.1
