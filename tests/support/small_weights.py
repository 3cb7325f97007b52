"""A small transformer's weights, written as tools write them, and read as an engine reads them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from original_folder import small_transformer
from safetensors.torch import save_file
from torch import Tensor

from engine.data import Weights
from engine.loading.component_files import ComponentFiles
from engine.loading.key_map import is_audio, to_engine
from engine.loading.layout import find_parts
from engine.loading.model import COMPONENTS
from engine.loading.safetensors_reader import AheadReader
from plugins.families.multitalk.transformer import MultiTalkTransformer3DModel

WANTED = Weights("multitalk", "multitalk", COMPONENTS, adapter="multitalk.safetensors")
WAN = "Wan2.1-I2V-14B-480P"
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
STATE = small_transformer()
WEIGHTS = {name: tensor for name, tensor in STATE.items() if not is_audio(name)}
AUDIO = {name: tensor for name, tensor in STATE.items() if is_audio(name)}


def save(state: Mapping[str, Tensor], path: Path, **metadata: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous().clone() for name, tensor in state.items()}, path, metadata or None)
    return path


def put(folder: Path, state: Mapping[str, Tensor], **metadata: str) -> Path:
    """Save a transformer as one file in a folder as ComfyUI has it, with Wan's config above."""
    (folder / WAN / "config.json").rename(folder / "config.json")
    return save(state, folder / "diffusion_models" / "wan.safetensors", **metadata)


def transformer(folder: Path, *, dtype: torch.dtype = torch.float32, **more: Any) -> dict[str, Tensor]:
    """Read it as an engine does, and hold the size that was foretold to the one it has."""
    expected = Weights(**(vars(WANTED) | {"components": ("transformer",)} | more))
    parts, missing = find_parts(folder, expected)
    assert missing == ()
    disk = ComponentFiles(parts["transformer"], "transformer", dtype, network=MultiTalkTransformer3DModel)
    module = disk.read(AheadReader(), "cpu")
    assert disk.size == sum(tensor.nbytes for tensor in module.parameters())
    state: dict[str, Tensor] = module.state_dict()
    return state


def hold_to(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor] = STATE) -> None:
    assert state.keys() == {to_engine(name) for name in wanted}
    different = [name for name, tensor in wanted.items() if not torch.equal(state[to_engine(name)], tensor.float())]
    assert not different
