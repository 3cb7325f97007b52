"""A LoRA's file by its header: entries, shapes, what it says about alpha. Imports no torch."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from engine.errors import SourceError
from engine.loading.file_kinds import what_is
from engine.loading.lora_alpha import StatedAlpha, alphas_in_config, alphas_in_header

#: PEFT's name of the file that says how an adapter was trained, and of the adapter's own.
CONFIG = "adapter_config.json"
_PEFT_STEM = "adapter_model"
_CONFIG_BYTES = 2**20

#: How scalars are stored, for struct; bfloat16 is the upper half of a float32.
_SCALARS = {"F64": "<d", "F32": "<f", "F16": "<e", "I64": "<q", "I32": "<i", "I16": "<h", "I8": "<b", "U8": "<B"}


@dataclass(frozen=True)
class LoraFile:
    """What a LoRA's header holds."""

    path: Path
    #: Shapes of the entries by name, in the file's order.
    shapes: Mapping[str, tuple[int, ...]]
    #: Values of the entries of alpha, by name.
    alphas: Mapping[str, float] = field(default_factory=dict)
    #: What header and adapter_config.json say about alpha.
    told: tuple[StatedAlpha, ...] = ()
    warnings: tuple[str, ...] = ()


def read_lora_header(path: Path) -> LoraFile:
    """Read the header of a LoRA's file, and adapter_config.json beside it. Raises SourceError.

    A file of another format is named as what it is: nothing that could hold code is opened.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise SourceError(f"no LoRA file {path}", field="lora", hint=_absent(path))
    try:
        # The header says how long the file must be.
        with safe_open(path, "np"):
            pass
        size, header = _header(path)
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise _unreadable(path, error) from error
    metadata = {str(key): str(value) for key, value in (header.pop("__metadata__", None) or {}).items()}
    shapes: dict[str, tuple[int, ...]] = {key: tuple(told["shape"]) for key, told in header.items()}
    alphas = {}
    with path.open("rb") as file:
        for key, told in header.items():
            if key.endswith(".alpha"):
                if prod(told["shape"]) != 1:
                    raise SourceError(f"{path}: {key} is no single number", field="lora", hint="get this file again")
                file.seek(8 + size + told["data_offsets"][0])
                alphas[key] = _scalar(file.read(told["data_offsets"][1] - told["data_offsets"][0]), told["dtype"], key)
    said = alphas_in_header(metadata)
    config, warnings = _config(path, shapes)
    return LoraFile(path, shapes, alphas, (*said, *config), warnings)


def _header(path: Path) -> tuple[int, dict[str, Any]]:
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        return size, json.loads(file.read(size))


def _scalar(data: bytes, dtype: str, key: str) -> float:
    if dtype == "BF16":
        return float(struct.unpack("<f", b"\0\0" + data)[0])
    if dtype not in _SCALARS:
        raise SourceError(f"{key} is stored as {dtype}", field="lora", hint="alpha must be an ordinary number")
    return float(struct.unpack(_SCALARS[dtype], data)[0])


def _config(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> tuple[list[StatedAlpha], tuple[str, ...]]:
    """Return what adapter_config.json beside `path` says, if it is about it."""
    beside = path.parent / CONFIG
    if not beside.is_file():
        return [], ()
    others = [
        other.name
        for other in sorted(path.parent.iterdir())
        if other.suffix in (".safetensors", ".bin", ".pt", ".pth", ".ckpt") and other.name != path.name
    ]
    owned = path.stem == _PEFT_STEM or not others
    if not owned and any(Path(other).stem == _PEFT_STEM for other in others):
        # It is that file's.
        return [], ()
    try:
        if beside.stat().st_size > _CONFIG_BYTES:
            raise SourceError(f"{beside} has over {_CONFIG_BYTES} bytes", field="lora", hint="get the file again")
        told = alphas_in_config(beside.read_text("utf-8"), CONFIG)
    except (OSError, ValueError) as error:
        raise SourceError(f"{beside} cannot be read: {error}", field="lora", hint="get the file again") from error
    if owned:
        return told, ()
    ranks = {shape[0] for key, shape in shapes.items() if shape and ("lora_A" in key or "lora_down" in key)}
    fitting = [one for one in told if one.rank is None or one.ranks or ranks == {one.rank}]
    if not fitting:
        return [], ()
    warning = (
        f"{CONFIG} beside {path.name} is taken for it, though {others[0]} lies there, too: "
        "give each LoRA with such a file a folder of its own"
    )
    return fitting, (warning,)


def _absent(path: Path) -> str:
    if not path.is_dir():
        return "it is looked for below the folder of the weights"
    inside = [f"{path.name}/{found.name}" for found in sorted(path.glob("*.safetensors"))]
    return f"it is a folder; name a file in it, such as {inside[0]}" if inside else "it is a folder without such a file"


def _unreadable(path: Path, error: Exception) -> SourceError:
    """Return the error for a file that is no safetensors file, naming what it is, or for one that is damaged."""
    kind, hint = what_is(path) or _other_kind(path)
    if not kind:
        return SourceError(f"{path} is damaged: {error}", field="lora", hint="get this file again")
    if "PyTorch" in kind:
        hint = (
            'convert it where you trust it: python -c "import sys, torch, safetensors.torch as s; '
            's.save_file(torch.load(sys.argv[1], weights_only=True), sys.argv[2])" '
            f"{path.name} {path.stem}.safetensors"
        )
    elif "GGUF" in kind:
        hint = "take the LoRA as .safetensors"
    return SourceError(f"{path} is {kind}, not a .safetensors file", field="lora", hint=hint)


def _other_kind(path: Path) -> tuple[str, str]:
    """Return what a file is that `what_is` does not know, and what helps; two empty texts where nobody knows."""
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError:
        return "", ""
    if not head:
        return "empty", "get this file again"
    if head.lstrip().startswith((b"{", b"[")):
        return "a JSON text", "the download was answered with something else: get it again, perhaps signed in"
    return "", ""
