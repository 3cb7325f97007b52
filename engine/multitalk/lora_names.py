"""Entries of a LoRA file -> the tensors of our network that they change, by name alone: no tensor is looked at."""

from __future__ import annotations

import re
from collections.abc import Iterable

from engine.errors import SourceError
from engine.multitalk.keys import engine_name, flat_modules

_PREFIX = re.compile(r"^(diffusion_model\.|transformer\.|unet\.|model\.|base_model\.)+")
#: kohya-ss and those after it write a module's name with underscores for dots.
_FLAT = re.compile(r"^lora_(?:unet|transformer)_+(?P<block>blocks_\d+_)?(?P<rest>.+)$")
_PART = re.compile(
    r"^(?P<module>.+)\.(?:"
    r"(?P<down>lora_down(?:\.\w+)?\.weight|lora_A(?:\.\w+)?\.weight|lora\.down\.weight)|"
    r"(?P<up>lora_up(?:\.\w+)?\.weight|lora_B(?:\.\w+)?\.weight|lora\.up\.weight)|"
    r"(?P<alpha>alpha)|(?P<diff>diff)|(?P<diff_b>diff_b))$"
)
#: Kinds of adapter that a product of two matrices is not; what is left of such a file would be another change.
_OTHER = re.compile(r"\.(dora_scale|lora_magnitude_vector(\.\w+)?(\.weight)?|hada_w\w+|lokr_w\w+|lora_mid\.weight)$")


def sort_entries(keys: Iterable[str]) -> tuple[dict[str, dict[str, str]], tuple[str, ...]]:
    """Return, by our tensor names, the entries ("down", "up", "alpha", "diff", "diff_b") of each, and those of none.

    Raises SourceError for half a pair, and for kinds of adapter that are no LoRA (DoRA, LoHa, LoKr).
    """
    keys = list(keys)
    other = next(filter(_OTHER.search, keys), None)
    if other is not None:
        raise SourceError(f"{other} is of another kind of adapter", field="lora", hint="LoRA is read: pairs and .diff")
    parts: dict[str, dict[str, str]] = {}
    unmatched: list[str] = []
    for key in keys:
        match = _PART.match(_PREFIX.sub("", key))
        tensor = _tensor_name(_dotted(match["module"]), "bias" if match["diff_b"] else "weight") if match else None
        if match is None or tensor is None or match.lastgroup is None:
            unmatched.append(key)
        else:
            parts.setdefault(tensor, {})[match.lastgroup] = key
    for tensor in list(parts):
        found = parts[tensor]
        if ("down" in found) != ("up" in found):
            raise SourceError(f"{found.get('down') or found.get('up')} is half of a pair", field="lora")
        if found.keys() == {"alpha"}:
            unmatched.append(parts.pop(tensor)["alpha"])
    return parts, tuple(unmatched)


def no_match(example: str) -> SourceError:
    """Return the error for a file of which no entry names a tensor of the network; `example` is one of its entries."""
    return SourceError(
        f"no entry of the LoRA matches the network; it holds {example!r}",
        field="lora",
        hint="names must be the reference's or ours, bare or behind diffusion_model. transformer. unet. lora_unet_",
    )


def no_fit(entry: str, shape: tuple[int, ...]) -> SourceError:
    """Return the error for a change that does not have the shape of its tensor."""
    return SourceError(f"{entry} does not fit a tensor of {shape}", field="lora", hint="is it for this model?")


def merged_only(entry: str) -> SourceError:
    """Return the error for a change of a tensor that is no layer's weight or bias, which only merging can make."""
    return SourceError(f"{entry} changes a modulation table", field="lora.mode", hint="use lora.mode=merged")


def _dotted(module: str) -> str:
    flat = _FLAT.match(module)
    if flat is None:
        return module
    block = flat["block"].replace("_", ".") if flat["block"] else ""
    return block + flat_modules(bool(block)).get(flat["rest"], flat["rest"])


def _tensor_name(module: str, leaf: str) -> str | None:
    return engine_name(f"{module}.{leaf}") or (engine_name(module) if leaf == "weight" else None)
