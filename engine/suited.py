"""Whether weights, quantisation and LoRAs of a config go together: said before anything is loaded, from headers alone.

A plan, `doctor`, a worker's health and fitness, and whoever loads all ask `check_suited`, so they say it in one line.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.util import find_spec
from math import prod
from pathlib import Path

from engine.config import Config
from engine.data import Weights
from engine.errors import ConfigError, EngineError, MissingExtra, MissingWeights, SourceError
from engine.loras import loadable_loras, named_by
from engine.multitalk.keys import engine_name
from engine.multitalk.kinds import SCALES
from engine.multitalk.layout import QUANTISED, Part, find_parts, gguf_names, other_quant, seen
from engine.multitalk.lora_names import merged_only, no_fit, no_match, sort_entries
from engine.settings import weights_of

#: Names of tensors -> their shapes; None: not known from a header alone.
Shapes = Mapping[str, tuple[int, ...] | None]


def check_suited(config: Config, folder: Path) -> None:
    """Raise SourceError or ConfigError where `folder` does not hold what the config's quantisation and LoRAs need.

    Reads headers and small JSON files, takes a fraction of a second and imports no torch. Whether the files are whole
    beyond their headers is for loading to find out.
    """
    wanted = weights_of(config)
    parts, missing = find_parts(folder, wanted)
    if missing:
        raise _incomplete(wanted, folder, missing)
    _check_packages(config.quant.name)
    loras = loadable_loras(config, folder)
    if not loras:
        return
    if config.quant.name == "gguf" and config.lora.mode == "merged":
        raise ConfigError("a GGUF file takes no merged LoRAs", field="lora.mode", hint="use lora.mode=runtime")
    shapes = _shapes(parts["transformer"])
    for path in dict(loras):
        if not path.is_file():
            key = named_by(config, folder, path)
            raise SourceError(
                f"no LoRA file {path}",
                field="lora",
                hint=f"{key} names it: put it there, or choose others by {key} ([] for none)",
            )
        _check_lora(path, shapes, mode=config.lora.mode)


def unsuited(config: Config, folder: Path) -> str:
    """Return what `check_suited` finds wrong, in one line; "" where it is content."""
    try:
        check_suited(config, folder)
    except EngineError as error:
        return str(error)
    return ""


def _incomplete(wanted: Weights, folder: Path, missing: tuple[str, ...]) -> MissingWeights:
    brief = f"the weights of {wanted.model!r} in {folder} do not serve quant={wanted.quant}"
    return MissingWeights(
        brief,
        missing=missing,
        commands=wanted.commands,
        instead=other_quant(folder, wanted),
        hint="choose another source or model",
        seen=seen(folder, wanted),
    )


def _check_packages(quant: str) -> None:
    """Raise MissingExtra where weights would be kept by a package that is not installed."""
    # A GGUF file was looked into with its own.
    if find_spec("torchao") is None:
        if quant == "int8":
            raise MissingExtra("quant=int8", "torchao", "quant")
        if quant in QUANTISED and quant != "gguf":
            raise MissingExtra("quant", "torchao", "quant", why="to keep weights as a quanto file stores them")


def _check_lora(path: Path, shapes: Shapes, *, mode: str) -> None:
    """Raise SourceError for a file that is damaged, that changes none of the tensors, or one of another shape."""
    from safetensors import SafetensorError, safe_open

    try:
        # The header says how long the file must be.
        with safe_open(path, "np") as file:
            stored = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise SourceError(f"{path} is damaged: {error}", field="lora", hint="get this file again") from error
    try:
        _check_entries(stored, shapes, mode=mode)
    except SourceError as error:
        raise SourceError(f"{path}: {error.what}", field=error.field, hint=error.hint) from error


def _check_entries(stored: Mapping[str, tuple[int, ...]], shapes: Shapes, *, mode: str) -> None:
    entries, unmatched = sort_entries(stored)
    matched = {tensor: entries[tensor] for tensor in entries if tensor in shapes}
    if not matched:
        first = next((next(iter(keys.values())) for keys in entries.values()), "nothing")
        raise no_match(next(iter(unmatched), first))
    for tensor, keys in matched.items():
        if mode == "runtime" and tensor.rpartition(".")[2] not in ("weight", "bias"):
            raise merged_only(next(iter(keys.values())))
        shape = shapes[tensor]
        if shape is not None and not _fits({kind: stored[key] for kind, key in keys.items()}, shape):
            raise no_fit(next(iter(keys.values())), shape)


def _fits(entry: Mapping[str, tuple[int, ...]], shape: tuple[int, ...]) -> bool:
    """Say whether up @ down, flattened behind their first axis, or the full change has the values of `shape`."""
    full = entry.get("diff", entry.get("diff_b"))
    if full is not None and prod(full) != prod(shape):
        return False
    if "down" not in entry:
        return True
    down, up = entry["down"], entry["up"]
    rank = down[0] if down else 0
    return prod(up[1:]) == rank and (*up[:1], prod(down[1:])) == (shape[0], prod(shape[1:]))


def _shapes(part: Part) -> dict[str, tuple[int, ...] | None]:
    """Return the tensors of a transformer by our names, with their shapes as far as headers have them."""
    found: dict[str, tuple[int, ...] | None] = {}
    for path in part.files:
        if path.suffix == ".safetensors":
            header = _header(path)
            known: dict[str, tuple[int, ...] | None] = {key: tuple(told["shape"]) for key, told in header.items()}
        else:
            # Its types pack several values into a byte, or a few bytes.
            known = dict.fromkeys(gguf_names(path))
        for key, shape in known.items():
            # Of a row that is quantised the values stand beside their scale.
            name = key.removesuffix("._data")
            if name.endswith(SCALES):
                continue
            found[engine_name(name) or name] = shape
    return found


def _header(path: Path) -> dict[str, dict[str, list[int]]]:
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > path.stat().st_size:
                raise ValueError("it is shorter than its header says")
            header: dict[str, dict[str, list[int]]] = json.loads(file.read(length))
    except (OSError, ValueError, RecursionError) as error:
        raise SourceError(f"{path} is damaged: {error}", field="source", hint="get this file again") from error
    header.pop("__metadata__", None)
    return header
