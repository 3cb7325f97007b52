"""Stored tensors -> a network: read, cast and moved one by one, without a second copy."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Set
from dataclasses import replace
from math import prod
from pathlib import Path

import torch
from torch import Tensor, nn

from engine.components import Reader, Stored
from engine.errors import SourceError
from engine.loading.diffusers_folder import weight_files
from engine.loading.safetensors_reader import stored_tensors

#: Our name of a floating tensor -> its dtype in memory.
Dtypes = Callable[[str], torch.dtype]


def find_stored(folder: Path) -> dict[str, Stored]:
    """Return the tensors in the safetensors files of a component's folder, by name. Only headers are read.

    If a tensor is in several files, the index decides which one counts. Raises SourceError.
    """
    index = next(iter(sorted(folder.glob("*.safetensors.index.json"))), None)
    file_of = json.loads(index.read_text("utf-8"))["weight_map"] if index else {}
    tensors: dict[str, Stored] = {}
    for file in weight_files(folder):
        tensors |= {
            name: stored for name, stored in stored_tensors(file).items() if file_of.get(name, file.name) == file.name
        }
    return tensors


def match(folder: Path, model: nn.Module, stored: Mapping[str, Stored], *, tied: Collection[str] = ()) -> None:
    """Raise SourceError, naming tensors, unless `stored` has exactly the tensors of `model`, with the same shapes.

    `tied` names tensors of `model` that share memory with another of its tensors and need not be stored.
    """
    expected = {name: tensor.shape for name, tensor in model.state_dict(keep_vars=True).items() if name not in tied}
    check_names(
        folder,
        lacking=expected.keys() - stored.keys(),
        unknown=stored.keys() - expected.keys(),
        misshapen={name for name in expected.keys() & stored.keys() if expected[name] != stored[name].shape},
    )


def check_names(where: Path | str, *, lacking: Set[str], unknown: Set[str], misshapen: Set[str]) -> None:
    """Raise SourceError, naming tensors, unless all three sets are empty. `where` is a folder, or names files."""
    one = isinstance(where, Path)
    for what, names in (
        ("lacks" if one else "lack", lacking),
        ("has the unknown" if one else "have the unknown", unknown),
        ("has another shape of" if one else "have another shape of", misshapen),
    ):
        if names:
            text = ", ".join(sorted(names)[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
            raise SourceError(
                f"{where} {what} {text}", field="source", hint="do config.json and weights belong together?"
            )


def fill(module: nn.Module, stored: Mapping[str, Stored], dtype: Dtypes, reader: Reader, device: str) -> None:
    """Replace the meta tensors of `module` by the `stored` tensors of the same names, on `device`.

    Each is read directly into its final memory, so only the reader's buffer is needed in addition. Raises SourceError
    for a file that is shorter than its header says.
    """
    names = {(entry.file, entry.name): name for name, entry in stored.items()}
    dtypes = {(entry.file, entry.name): _becomes(name, entry, dtype) for name, entry in stored.items()}
    # With its index: in a reader's thread plain "cuda" may be another card than here.
    where = torch.empty(0, device=device).device

    def into(entry: Stored) -> Tensor:
        return torch.empty(entry.shape, dtype=dtypes[entry.file, entry.name], device=where)

    here = where.type == "cpu"
    entries = [
        replace(entry, stays=here and dtypes[entry.file, entry.name] == entry.dtype) for entry in stored.values()
    ]
    tensors = {names[entry.file, entry.name]: tensor for entry, tensor in reader.read(entries, into)}
    module.load_state_dict(tensors, assign=True, strict=False)


def filled_size(stored: Mapping[str, Stored], dtype: Dtypes) -> int:
    """Return the bytes that `fill` will need on the device."""
    return sum(prod(entry.shape) * _becomes(name, entry, dtype).itemsize for name, entry in stored.items())


def _becomes(name: str, stored: Stored, dtype: Dtypes) -> torch.dtype:
    return dtype(name) if stored.dtype.is_floating_point else stored.dtype
