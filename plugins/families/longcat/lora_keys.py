"""Keys of LoRA files in the published format, and whether a file matches the network. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from engine.data import LoraFit
from engine.errors import SourceError
from engine.loading.lora_file import read_lora_header

HYPHEN = "___lorahyphen___"
PREFIX = f"lora{HYPHEN}"
DOWN, UP, ALPHA = ".lora_down.weight", ".lora_up.weight", ".alpha_scale"
PART = ".lora_up.blocks."
#: Endings of the tensors of an int8 weight.
DATA, SCALE = ".weight_int8", ".weight_scale"

Shape = tuple[int, ...]


def split_key(key: str) -> tuple[str, str]:
    """Return the layer of a key, and its part: DOWN, UP, ALPHA, the number of an UP of several, or "" for none."""
    for ending in (DOWN, UP, ALPHA):
        if key.endswith(ending):
            return _module(key.removesuffix(ending)), ending
    before, mark, rest = key.partition(PART)
    number = rest.removesuffix(".weight")
    return (_module(before), number) if mark and number.isdigit() else (key, "")


def sort_shapes(shapes: Mapping[str, Shape], file: str) -> dict[str, dict[str, Shape]]:
    """Return the shapes of each layer's parts. Raises SourceError for a key in another format, or incomplete parts."""
    if not any(name.startswith(PREFIX) for name in shapes):
        raise SourceError(
            f"{file} has no key that begins with {PREFIX}",
            field="lora",
            hint="LoRAs of this model are in LongCat's own format; convert it",
        )
    layers: dict[str, dict[str, Shape]] = {}
    for key, shape in shapes.items():
        layer, part = split_key(key)
        if not key.startswith(PREFIX) or not part:
            raise SourceError(f"{file}: {key} is no part of a LoRA", field="lora", hint="get this file again")
        layers.setdefault(layer, {})[part] = shape
    for layer, parts in layers.items():
        if not _is_whole(parts):
            raise SourceError(f"{file}: the parts of {layer} do not fit each other", field="lora", hint="get it again")
    return layers


def ups_of(parts: Mapping[str, object]) -> list[str]:
    """Return the names of a layer's second halves, in the order of their slices of the outputs."""
    return [UP] if UP in parts else sorted((part for part in parts if part.isdigit()), key=int)


def look_at_lora(path: Path, shapes: Mapping[str, Shape | None]) -> LoraFit:
    """Return how a LoRA's file matches the network whose stored tensors are `shapes`. Reads only the file's header.

    Raises SourceError, as loading does: every layer must be in the network, and have its shape.
    """
    header = read_lora_header(path)
    found = sort_shapes(header.shapes, path.name)
    ranks: set[int] = set()
    for layer, parts in found.items():
        ups = ups_of(parts)
        shape = (sum(parts[up][0] for up in ups), parts[DOWN][1])
        check_layer(layer, shape, shapes.get(f"{layer}.weight", shapes.get(layer + DATA)))
        ranks |= {parts[up][1] for up in ups}
    scaled = sum(ALPHA in parts for parts in found.values())
    text = f"rank {', '.join(map(str, sorted(ranks)))}; alpha_scale in {scaled} of {len(found)} layers"
    return LoraFit(path.name, len(header.shapes), (), text)


def attached_bytes(path: Path, value: int) -> int:
    """Return the bytes of a LoRA's file beside the layers, `value` bytes a number. Raises SourceError.

    The parts of a fused layer become one pair of matrices, whose second one is zero outside of the parts' blocks.
    """
    header = read_lora_header(path)
    total = 0
    for parts in sort_shapes(header.shapes, path.name).values():
        rows, columns = parts[DOWN]
        total += rows * columns + rows * sum(parts[up][0] for up in ups_of(parts))
    return total * value


def check_layer(layer: str, change: Shape, weight: Shape | None) -> None:
    """Raise SourceError unless a change of the shape `change` fits the `weight` of a layer; None: there is none."""
    if weight is None:
        raise SourceError(
            f"the LoRA changes {layer}, which this network does not have",
            field="lora",
            hint="use the LoRA of this model",
        )
    if change != tuple(weight):
        raise SourceError(
            f"the LoRA's change of {layer} does not fit a weight of {tuple(weight)}",
            field="lora",
            hint="use the LoRA of this model",
        )


def _module(flat: str) -> str:
    return flat.removeprefix(PREFIX).replace(HYPHEN, ".")


def _is_whole(parts: Mapping[str, Shape]) -> bool:
    ups = ups_of(parts)
    numbers = [int(part) for part in ups if part.isdigit()]
    count = 1
    for size in parts.get(ALPHA, ()):
        count *= size
    return (
        DOWN in parts
        and bool(ups)
        and not (UP in parts and any(part.isdigit() for part in parts))
        and numbers == list(range(len(numbers)))
        and len(parts[DOWN]) == 2
        and all(len(parts[up]) == 2 for up in ups)
        and sum(parts[up][1] for up in ups) == parts[DOWN][0]
        and count == 1
    )
