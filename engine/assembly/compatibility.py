"""Whether weights, quantisation and LoRAs of a config fit together, checked before loading, from headers only.

Plans, `doctor`, a worker's health and fitness checks, and loading use `check_suited`, so they report the same line.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from engine.assembly.location import weights_of
from engine.assembly.loras import Loras, bundled_loras, loadable_loras, named_by
from engine.components import MultiplyingQuantiser, Quantiser
from engine.config import Config
from engine.data import Plan, Weights
from engine.data.adapters import LoraFit as LoraFit  # re-exported
from engine.data.adapters import LoraUse
from engine.errors import ConfigError, MissingExtra, MissingWeights, SourceError
from engine.hub.manifest import read_manifest
from engine.loading.key_map import engine_name
from engine.loading.layout import QUANTISED, ComponentLayout, describe_unread, find_parts, gguf_names, other_quant
from engine.loading.lora_alpha import strengths
from engine.loading.lora_file import LoraFile, read_lora_header
from engine.loading.lora_names import check_share, fits, no_match_error, shape_error, sort_entries, unmatched_warning
from engine.loading.tensor_names import SCALES
from engine.machine.device import resolve_device, resolve_dtype
from engine.machine.products import check_products
from engine.planning.gpus import find_card, installed_cards
from engine.plugin.manager import Registry

#: Tensor name -> shape; None: not known from the header.
Shapes = Mapping[str, tuple[int, ...] | None]


def check_suited(config: Config, folder: Path, registry: Registry) -> Mapping[Path, LoraFit]:
    """Raise SourceError or ConfigError if `folder` lacks what the config's quantisation and LoRAs need.

    Return how each LoRA to be loaded matches the network.

    Reads only headers and small JSON files, takes a fraction of a second and imports no torch. Damage after the headers
    is noticed only while loading.
    """
    check_device(config, registry)
    needed = weights_of(config)
    _, missing = find_parts(folder, needed)
    if missing:
        raise _incomplete(needed, folder, missing)
    _check_packages(config, registry)
    loras = loadable_loras(config, folder)
    if not loras:
        return {}
    if config.quant.name == "gguf" and config.lora.mode == "merged":
        raise ConfigError("LoRAs cannot be merged into a GGUF file", field="lora.mode", hint="use lora.mode=runtime")
    for path in dict(loras):
        if not path.exists():
            key, get = named_by(config, folder, path), _get(needed, folder, path)
            raise SourceError(
                f"no LoRA file {path}",
                field="lora",
                hint=f"{key} refers to it: {get}put the file there, or change {key} ([] for none)",
            )
    return look_at_loras(needed, folder, loras)


def _get(needed: Weights, folder: Path, path: Path) -> str:
    """Return the command that downloads a published LoRA, as the beginning of a hint; "" if it is not published."""
    part = read_manifest().part_of(path.relative_to(folder).as_posix()) if path.is_relative_to(folder) else None
    return f"{needed.commands[0][0]} --with {part}, or " if part and needed.commands else ""


def _incomplete(needed: Weights, folder: Path, missing: tuple[str, ...]) -> MissingWeights:
    brief = f"the weights of {needed.model!r} in {folder} cannot be used with quant={needed.quant}"
    return MissingWeights(
        brief,
        missing=missing,
        commands=needed.commands,
        instead=other_quant(folder, needed),
        hint="choose another source or model",
        seen=describe_unread(folder, needed),
    )


def quantiser_of(config: Config, registry: Registry) -> Quantiser | None:
    """Return the quantiser that runs while weights are loaded; None if the files' own format is kept."""
    name = config.quant.name
    return None if name == "none" or name in QUANTISED else registry.quants.build(config.quant)


def check_device(config: Config, registry: Registry) -> None:
    """Raise ConfigError if this machine's GPU cannot multiply in the 8 bits that a config chose.

    GPUs that are not in the table of planning are checked while the weights are loaded.
    """
    quantiser, drivers = quantiser_of(config, registry), installed_cards()
    device = resolve_device(config.device, cuda=bool(drivers))
    if isinstance(quantiser, MultiplyingQuantiser) and device == "cuda":
        dtype = resolve_dtype(config.dtype, device)
        for card in filter(None, map(find_card, drivers)):
            check_products(quantiser.products, dtype, card.capability, card.name)


def _check_packages(config: Config, registry: Registry) -> None:
    """Raise MissingExtra if a package that the quantised weights need is not installed."""
    if (quantiser := quantiser_of(config, registry)) is not None:
        quantiser.check()
    # The package for GGUF was already needed to read the file's header.
    if config.quant.name in QUANTISED and config.quant.name != "gguf" and find_spec("torchao") is None:
        raise MissingExtra("quant", "torchao", "quant", why="to keep weights in the format of a quanto file")


def look_at_loras(needed: Weights, folder: Path, loras: Loras) -> dict[Path, LoraFit]:
    """Return how each LoRA matches the transformer in `folder`, from headers only. Raises SourceError."""
    if not loras:
        return {}
    parts, missing = find_parts(folder, needed)
    if missing:
        raise _incomplete(needed, folder, missing)
    shapes = _shapes(parts["transformer"])
    look = needed.look_at_lora or _look_at
    return {path: look(path, shapes) for path in dict(loras)}


def with_loras(plan: Plan, config: Config, folder: Path, fits: Mapping[Path, LoraFit]) -> Plan:
    """Return `plan` with the LoRAs that `config` switches on (those in `fits`), and the warnings about them."""
    active = [(fits[path], scale) for path, scale in bundled_loras(config, folder) if path in fits]
    uses = tuple(LoraUse(fit.file, scale, fit.entries, len(fit.unmatched), fit.alpha) for fit, scale in active)
    lines = (
        line for fit, _ in active for line in (unmatched_warning(fit.file, fit.entries, fit.unmatched), *fit.warnings)
    )
    return replace(plan, loras=uses, warnings=(*plan.warnings, *dict.fromkeys(filter(None, lines))))


def _look_at(path: Path, shapes: Shapes) -> LoraFit:
    """Raise SourceError if the file is damaged, matches no tensor, or matches one of another shape."""
    header = read_lora_header(path)
    try:
        return _match(header, shapes)
    except SourceError as error:
        raise SourceError(f"{path}: {error.what}", field=error.field, hint=error.hint) from error


def _match(header: LoraFile, shapes: Shapes) -> LoraFit:
    stored = header.shapes
    entries, unmatched = sort_entries(stored)
    matched = {tensor: entries[tensor] for tensor in entries if tensor in shapes}
    if not matched:
        first = next((next(iter(keys.values())) for keys in entries.values()), "nothing")
        raise no_match_error(next(iter(unmatched), first))
    for tensor, keys in matched.items():
        shape = shapes[tensor]
        if shape is not None and not fits({part: stored[key] for part, key in keys.items()}, shape):
            raise shape_error(next(iter(keys.values())), shape)
    unmatched += tuple(key for tensor, keys in entries.items() if tensor not in matched for key in keys.values())
    check_share(len(stored), unmatched)
    strength = strengths(entries, stored, header.alphas, header.stated)
    file = header.path.name
    warnings = tuple(f"{file}: {warning}" for warning in strength.warnings)
    return LoraFit(file, len(stored), unmatched, strength.text, (*warnings, *header.warnings))


def _shapes(part: ComponentLayout) -> dict[str, tuple[int, ...] | None]:
    """Return the tensors of a transformer by the engine's names, with the shapes that headers give."""
    shapes: dict[str, tuple[int, ...] | None] = {}
    for path in part.files:
        if path.suffix == ".safetensors":
            header = _header(path)
            stored: dict[str, tuple[int, ...] | None] = {key: tuple(entry["shape"]) for key, entry in header.items()}
        else:
            # No shapes: GGUF types pack several values into one or a few bytes.
            stored = dict.fromkeys(gguf_names(path))
        for key, shape in stored.items():
            # A quantised tensor is stored as values and their scales.
            name = key.removesuffix("._data")
            if name.endswith(SCALES):
                continue
            shapes[engine_name(name) or name] = shape
    return shapes


def _header(path: Path) -> dict[str, dict[str, list[int]]]:
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > path.stat().st_size:
                raise ValueError("it is shorter than its header states")
            header: dict[str, dict[str, list[int]]] = json.loads(file.read(length))
    except (OSError, ValueError, RecursionError) as error:
        raise SourceError(f"{path} is damaged: {error}", field="source", hint="get this file again") from error
    header.pop("__metadata__", None)
    return header
