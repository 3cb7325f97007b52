"""Stored tensors -> a network: read, cast and moved one after the other, with no second copy."""

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
    """Return what the safetensors files of a component's folder hold, by name, from their headers alone.

    Where there is an index, a tensor that lies in several files is the one of the file it names. Raises SourceError.
    """
    index = next(iter(sorted(folder.glob("*.safetensors.index.json"))), None)
    chosen = json.loads(index.read_text("utf-8"))["weight_map"] if index else {}
    found: dict[str, Stored] = {}
    for file in weight_files(folder):
        for name, stored in stored_tensors(file).items():
            if chosen.get(name, file.name) == file.name:
                found[name] = stored
    return found


def match(folder: Path, shell: nn.Module, stored: Mapping[str, Stored], *, tied: Collection[str] = ()) -> None:
    """Raise SourceError, naming tensors, unless `stored` holds exactly those of `shell`, in its shapes.

    `tied` names tensors of `shell` that are another of its tensors as well, and so need not be stored.
    """
    wanted = {name: tensor.shape for name, tensor in shell.state_dict(keep_vars=True).items() if name not in tied}
    check_names(
        folder,
        lacking=wanted.keys() - stored.keys(),
        unknown=stored.keys() - wanted.keys(),
        misshapen={name for name in wanted.keys() & stored.keys() if wanted[name] != stored[name].shape},
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
            shown = ", ".join(sorted(names)[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
            raise SourceError(
                f"{where} {what} {shown}", field="source", hint="do config.json and weights belong together?"
            )


def fill(module: nn.Module, stored: Mapping[str, Stored], dtype: Dtypes, reader: Reader, device: str) -> None:
    """Give `module`, whose tensors are on the meta device, those that are `stored` under their names, on `device`.

    Each is read into its place, so that beside the module there is the reader's buffer alone. Raises SourceError for a
    file that is not as long as its header says.
    """
    names = {(found.file, found.name): name for name, found in stored.items()}
    dtypes = {(found.file, found.name): _becomes(name, found, dtype) for name, found in stored.items()}
    # With its index: "cuda" alone is another card for the thread of a reader than for this one.
    where = torch.empty(0, device=device).device

    def into(found: Stored) -> Tensor:
        return torch.empty(found.shape, dtype=dtypes[found.file, found.name], device=where)

    here = where.type == "cpu"
    wanted = [replace(found, stays=here and dtypes[found.file, found.name] == found.dtype) for found in stored.values()]
    tensors = {names[found.file, found.name]: tensor for found, tensor in reader.read(wanted, into)}
    module.load_state_dict(tensors, assign=True, strict=False)


def filled_size(stored: Mapping[str, Stored], dtype: Dtypes) -> int:
    """Return the bytes that `fill` will take on the device."""
    return sum(prod(found.shape) * _becomes(name, found, dtype).itemsize for name, found in stored.items())


def _becomes(name: str, stored: Stored, dtype: Dtypes) -> torch.dtype:
    return dtype(name) if stored.dtype.is_floating_point else stored.dtype
