"""Config and plan -> Estimates, and changes of the config that make a plan fit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.assembly.compatibility import quantiser_of
from engine.assembly.location import weights_of
from engine.assembly.settings import largest_window
from engine.components import MultiplyingQuantiser, Quantiser, StoredQuantiser
from engine.config import Config, DynamicQuantConfig
from engine.data import Plan
from engine.data.estimates import Estimates
from engine.errors import EngineError, SourceError, UnknownComponent
from engine.loading.layout import QUANTISED, find_parts, is_scaled
from engine.machine.device import resolve_device, resolve_dtype
from engine.machine.products import CAPABILITIES
from engine.machine.profiles import free_on_host
from engine.planning.estimate import estimate, multiplies
from engine.planning.gpus import cards as known_cards
from engine.planning.gpus import installed_cards
from engine.planning.memory import WIDTHS, Load
from engine.planning.operations import Multiplied
from engine.planning.parameters import PARTS, Quant, Sizes, published_sizes, read_sizes
from engine.plugin.manager import Registry

#: Changes to try if a plan does not fit; those that change no frames come first.
CHANGES = (
    ("memory=text-offload",),
    ("memory=model-offload",),
    ("memory=group-offload",),
    ("quant=int8", "memory=model-offload"),
    ("quant=int8", "memory=group-offload"),
)
_COMPILED = (
    "compile=blocks: the predicted seconds do not include the time to compile, "
    "once for each number of speakers in each process"
)


def estimate_plan(plan: Plan, config: Config, registry: Registry) -> Plan:
    """Return `plan` with its estimates, or with a warning if they cannot be computed.

    The sizes come from the configs beside the plan's weights if they can be read, else from the model's published
    architecture.
    """
    try:
        estimates = _estimate(plan, config, registry)
    except UnknownComponent as error:
        why = f"the cost model does not cover {error.group}={error.name}"
    except SourceError as error:
        why = error.what
    else:
        notes = [] if config.parallel.name == "none" else ["the plan's estimates are for a single device"]
        if config.compile.name != "none":
            notes.append(_COMPILED)
        return replace(plan, estimates=estimates, warnings=(*plan.warnings, *notes, *_unable(config, registry)))
    return replace(plan, warnings=(*plan.warnings, f"memory, time and cost are not estimated: {why}"))


def _estimate(plan: Plan, config: Config, registry: Registry) -> Estimates:
    sizes, own = _sizes(config, plan.weights)
    cards = installed_cards()
    device = resolve_device(config.device, cuda=bool(cards))
    dtype = resolve_dtype(config.dtype, device)
    load = make_load(
        config,
        registry,
        device=device,
        dtype=dtype,
        loras=lora_bytes(config, plan.weights, dtype),
        converted=not own,
        scaled=_is_scaled(config, plan.weights),
    )
    return estimate(
        plan,
        sizes,
        load,
        card=cards[0] if cards and device == "cuda" else None,
        start_bytes=_files_bytes(plan.weights) if plan.weights is not None and own else None,
        # Needed only for "auto".
        host_free=free_on_host() if load.memory == "auto" else 0,
    )


def _unable(config: Config, registry: Registry) -> Iterable[str]:
    """Yield a warning about the cards that an estimate leaves out."""
    multiplied = multiplied_by(config, quantiser_of(config, registry))
    if multiplied is None:
        return
    names = [card.name for card in known_cards() if not multiplies(card, multiplied)]
    if names:
        least = ".".join(map(str, CAPABILITIES[multiplied.format]))
        yield (
            f"{', '.join(names)} cannot run quant={config.quant.name}: {multiplied.format} products need compute "
            f"capability {least}; choose quant=int8-dynamic there"
        )


def advise(estimates: Estimates, config: Config, replan: Callable[[Sequence[str]], Plan]) -> Estimates:
    """Return `estimates` with the first change, for each card that is too small, whose own plan fits it.

    `replan` plans the same request with overrides added. Smaller resolutions of the model come last.
    """
    changes: dict[str, tuple[str, ...]] = {}
    small = [card for card in estimates.cards if not card.fits]
    for change in _changes(config):
        if len(changes) == len(small):
            break
        try:
            changed = replan(change).estimates
        except EngineError:
            # Such as a model without that resolution for this picture, or a plugin's own group of that name.
            continue
        fitting = {card.card for card in changed.cards if card.fits} if changed is not None else set()
        for card in small:
            if card.card in fitting:
                changes.setdefault(card.card, change)
    return replace(estimates, cards=tuple(replace(card, change=changes.get(card.card, ())) for card in estimates.cards))


def _changes(config: Config) -> Iterable[tuple[str, ...]]:
    # A chosen quantisation is kept: another one saves nothing.
    groups = ("memory=",) if config.quant.name != "none" else ("memory=", "quant=")
    combinations = dict.fromkeys(
        tuple(word for word in change if word.startswith(groups) and word != f"memory={config.memory.name}")
        for change in CHANGES
    )
    yield from (change for change in combinations if change)
    areas = {name: _area(config, name) for name in config.model.resolutions}
    for name in sorted(areas, key=areas.__getitem__, reverse=True):
        if areas[name] < areas[config.resolution]:
            yield (f"resolution={name}", *list(combinations)[-1])


def _area(config: Config, resolution: str) -> int:
    return max((size[0] * size[1] for size in config.model.resolutions[resolution].buckets.values()), default=0)


def _sizes(config: Config, weights: Path | None) -> tuple[Sizes, bool]:
    """Return the model's sizes, and whether its files have the engine's own layout. Raises SourceError."""
    if (sizes := config.family.sizes()) is not None:
        return sizes, True
    try:
        if weights is not None:
            return read_sizes(weights), True
    except SourceError:
        # A layout without these configs, or another kind of network: loading reports whether it works.
        pass
    if not config.model.architecture:
        raise SourceError(f"the sizes of model={config.model.name} are not known", field="model.architecture")
    return published_sizes(config.model.architecture), False


def _is_scaled(config: Config, weights: Path | None) -> bool:
    """Return whether the transformer's weights are stored with scales, as in fp8_scaled files."""
    if weights is None:
        return False
    try:
        parts, _ = find_parts(weights, replace(weights_of(config), components=("transformer",)))
    except EngineError:
        # Loading reports whether it works.
        return False
    return "transformer" in parts and is_scaled(parts["transformer"])


def _files_bytes(weights: Path) -> int:
    return sum(path.stat().st_size for part in PARTS for path in (weights / part).glob("*.safetensors"))


def make_load(config: Config, registry: Registry, **others: Any) -> Load:
    """Return how a config loads its weights; `others` adds or replaces fields of Load."""
    quantiser = quantiser_of(config, registry)
    stored = isinstance(quantiser, StoredQuantiser) and quantiser.stored
    values: dict[str, Any] = {
        "quant": config.quant.name,
        "made": None if quantiser is None else Quant(*quantiser.cost()),
        "stored": config.quant.form if config.quant.form in QUANTISED or stored else "none",
        "multiplied": multiplied_by(config, quantiser),
        "text": isinstance(quantiser, MultiplyingQuantiser) and quantiser.text,
        "memory": config.memory.name,
        "blocks": config.memory.blocks,
        "resident": config.memory.resident,
        "adapted": _is_adapted(config),
        "cache": registry.caches.build(config.cache),
        "batched": config.guidance.batched if config.parallel.name == "none" else False,
        "tile": config.memory.tile,
        "decode_dtype": config.vae.decode_dtype,
        "continuation": config.continuation.style,
        "window": largest_window(config),
        "attention": config.attention.name,
        "compiled": config.compile.name != "none",
        "fused": config.kernels != "eager",
        "residual_dtype": config.residual_dtype,
    }
    return Load(**(values | others))


def multiplied_by(config: Config, quantiser: Quantiser | None) -> Multiplied | None:
    """Return what a config multiplies in 8 bits; None: nothing."""
    if not isinstance(quantiser, MultiplyingQuantiser):
        return None
    keep = config.quant.keep if isinstance(config.quant, DynamicQuantConfig) else ()
    return Multiplied(quantiser.products, tuple(keep))


def lora_files(config: Config) -> set[str]:
    """Return the LoRAs that a config loads, as paths relative to the weights folder."""
    bundled = [lora for bundle in config.model.bundles.values() for lora in bundle.loras]
    return {lora.file for lora in (*bundled, *config.lora.extra)}


def _is_adapted(config: Config) -> bool:
    """Return whether a config switches on LoRAs that are kept separate from the weights."""
    bundle = config.model.bundles[config.sampler.bundle]
    return config.lora.mode == "runtime" and bool(bundle.loras or config.lora.extra)


def lora_bytes(config: Config, weights: Path | None, dtype: str) -> int:
    """Return the bytes of LoRAs that are kept separate from the weights, counting only existing files.

    `dtype` is the network's.
    """
    if weights is None or config.lora.mode == "merged":
        return 0
    files = [path for name in lora_files(config) if (path := weights / name).is_file()]
    own = type(config.family).lora_bytes
    return sum(path.stat().st_size if own is None else own(path, WIDTHS[dtype]) for path in files)
