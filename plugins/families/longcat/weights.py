"""Published files of the transformer, dense or int8 -> a network; tensors have the published names.

A file of int8 holds `X.weight_int8` (out, in) and `X.weight_scale` (out,) for the weight X of each linear layer but
`final_layer.linear`; the weight is their product.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn

from engine.components import Stored
from engine.errors import EngineError, SourceError
from engine.loading.fill import check_names
from engine.loading.quanto import Quantised
from engine.loading.safetensors_reader import stored_tensors
from engine.loading.tensor_names import strip_prefixes
from plugins.families.longcat.folders import STEMS, weight_files
from plugins.families.longcat.lora import FusedLora
from plugins.families.longcat.precision import kept_in_float32
from plugins.families.longcat.transformer import AvatarTransformer3DModel

#: Endings of the two tensors of an int8 weight.
DATA, SCALE = ".weight_int8", ".weight_scale"


def find_stored(folder: Path) -> dict[str, Stored]:
    """Return the tensors of a transformer's folder by name, without prefixes of tools. Only headers are read.

    Raises SourceError if a file is missing or damaged, or if a tensor is there twice.
    """
    stem = next((stem for stem in reversed(STEMS) if any(folder.glob(f"{stem}*.safetensors*"))), STEMS[0])
    found: dict[str, Stored] = {}
    for file in weight_files(folder, stem):
        if not file.is_file():
            raise SourceError(f"{file} is missing", field="source", hint="get this file")
        stored = stored_tensors(file)
        for name, short in strip_prefixes(stored).items():
            if short in found:
                raise SourceError(f"{folder} holds {short} twice", field="source", hint="keep one of the files")
            found[short] = stored[name]
    return found


def build_empty(folder: Path, stored: Mapping[str, Stored]) -> AvatarTransformer3DModel:
    """Build the network of `folder` on the meta device, for the tensors of its files.

    Raises SourceError, naming tensors, if config and tensors do not fit each other.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text("utf-8"))
        with init_empty_weights():
            model: AvatarTransformer3DModel = AvatarTransformer3DModel.from_config(config)
    except Exception as error:
        # Config values reach constructors unchecked, so any error is possible.
        what = error.what if isinstance(error, EngineError) else f"{type(error).__name__}: {error}"
        raise SourceError(f"{path} builds no transformer: {what}", field="source", hint="get both again") from error
    check_tensors(folder, model, stored)
    return model


def check_tensors(where: Path | str, model: nn.Module, stored: Mapping[str, Stored]) -> None:
    """Raise SourceError, naming tensors, unless `stored` has exactly the tensors of `model`, dense or as int8."""
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict(keep_vars=True).items()}
    shapes: dict[str, tuple[int, ...]] = {}
    lacking: set[str] = set()
    for name, entry in stored.items():
        if name.endswith(DATA):
            module = name.removesuffix(DATA)
            shapes[f"{module}.weight"] = entry.shape
            scale = stored.get(module + SCALE)
            if scale is None or scale.shape != entry.shape[:1]:
                lacking.add(module + SCALE)
        elif not (name.endswith(SCALE) and name.removesuffix(SCALE) + DATA in stored):
            shapes[name] = entry.shape
    check_names(
        where,
        lacking=(expected.keys() - shapes.keys()) | lacking,
        unknown=shapes.keys() - expected.keys(),
        misshapen={name for name in expected.keys() & shapes.keys() if expected[name] != shapes[name]},
    )


def load_transformer(
    folder: Path,
    dtype: torch.dtype,
    *,
    device: str = "cpu",
    keep_int8: bool = True,
    lora: FusedLora | None = None,
    multiplier: float = 1.0,
) -> AvatarTransformer3DModel:
    """Read the transformer of `folder` in `dtype` (except its float32 parts), one tensor at a time.

    `keep_int8`: int8 weights of the blocks stay int8 in memory (torchao's tensors); otherwise all become dense. `lora`
    is merged into the weights it changes, in float32; those of int8 become dense then, because quantising them again
    would lose most of a small change. Raises SourceError, MissingExtra, and ConfigError for a LoRA of another network.
    """
    stored = find_stored(folder)
    model = build_empty(folder, stored)
    changed = set() if lora is None else lora.check(model)
    for name, tensor in read_tensors(stored):
        target = torch.float32 if kept_in_float32(name) else dtype
        placed: Tensor
        if lora is not None and name in changed:
            dense = tensor.dense(torch.float32) if isinstance(tensor, Quantised) else tensor.float()
            placed = (dense + multiplier * lora.delta(name)).to(device, target)
        elif isinstance(tensor, Quantised):
            keeps = keep_int8 and name.startswith("blocks.")
            placed = tensor.kept(target).to(device) if keeps else tensor.dense(target).to(device)
        else:
            placed = tensor.to(device, target, copy=True)
        module, _, leaf = name.rpartition(".")
        trainable = type(placed) is Tensor
        model.get_submodule(module)._parameters[leaf] = nn.Parameter(placed, requires_grad=trainable)
    model.eval()
    return model


def read_tensors(stored: Mapping[str, Stored]) -> Iterator[tuple[str, Any]]:
    """Yield (name, tensor) in file order; an int8 weight is a Quantised. A dense one may be part of a mapped file."""
    from safetensors import safe_open

    by_file: dict[Path, list[tuple[str, Stored]]] = {}
    for name, entry in sorted(stored.items(), key=lambda item: item[1].offset):
        by_file.setdefault(entry.file, []).append((name, entry))
    halves: dict[str, dict[str, Tensor]] = {}
    for file, entries in by_file.items():
        with safe_open(file, "pt") as opened:
            for name, entry in entries:
                tensor = opened.get_tensor(entry.name)
                ending = next((end for end in (DATA, SCALE) if name.endswith(end)), None)
                if ending is None:
                    yield name, tensor
                    continue
                module = name.removesuffix(ending)
                pair = halves.setdefault(module, {})
                pair[ending] = tensor
                if len(pair) == 2:
                    yield f"{module}.weight", Quantised(pair[DATA], pair[SCALE].float()[:, None])
                    del halves[module]
