"""Entries of a LoRA file -> the tensors of our network that they change, by name alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from math import prod

from engine.errors import SourceError
from engine.loading.key_map import engine_name, flat_modules

#: If more than this share of a file's entries match no tensor, it is for another network and is refused.
MOST_UNMATCHED = 0.5

#: What wrappers insert into names.
_WRAPPED = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_PREFIX = re.compile(r"^(?:(?:diffusion_model|transformer|unet|model|base_model|module|pipe|dit)\.)+")
#: kohya-ss, LyCORIS and similar tools replace all or some dots of a module's name by underscores.
_FLAT = re.compile(r"^(?:lora|lycoris)_+(?:(?:unet|transformer|diffusion_model|model|dit)_+)*")
_FLAT_BLOCK = re.compile(r"^blocks_(?P<number>\d+)(?:_(?P<rest>.+))?$")
_PART = re.compile(
    r"^(?P<module>.+)\.(?:"
    r"(?P<down>lora_down(?:\.\w+)?\.weight|lora_A(?:\.\w+)?\.weight|lora\.down\.weight)|"
    r"(?P<up>lora_up(?:\.\w+)?\.weight|lora_B(?:\.\w+)?\.weight|lora\.up\.weight)|"
    r"(?P<up_bias>lora_up(?:\.\w+)?\.bias|lora_B(?:\.\w+)?\.bias|lora\.up\.bias)|"
    r"(?P<alpha>alpha)|(?P<diff>diff|w_norm)|(?P<diff_b>diff_b|b_norm)|(?P<diff_m>diff_m)|"
    r"hada_(?P<hada>w[12]_[ab])|lokr_(?P<lokr>w[12](?:_[ab])?))$"
)
#: Kinds of entry that change a module's bias; all others change its weight, or a modulation table.
_OF_BIAS = ("diff_b", "up_bias")
#: Names of modulation tables, in a block and outside the blocks.
_TABLES = ("modulation", "scale_shift_table")

#: Unsupported adapters, by the end of their entries' names: the other entries alone would be a wrong change.
_OTHER = (
    ("DoRA", r"dora_scale|lora_magnitude_vector(?:\.\w+)?(?:\.weight)?|weight_m_wdecomp(?:\.weight)?"),
    ("a convolution in Tucker form", r"hada_t[12]|lokr_t[12]|lora_mid(?:\.\w+)?\.weight"),
    ("AdaLoRA", r"lora_E(?:\.\w+)?|ranknum(?:\.\w+)?"),
    ("OFT or BOFT", r"oft_\w+(?:\.\w+)*|boft_\w+(?:\.\w+)*"),
    ("(IA)^3", r"ia3_l(?:\.\w+)?|on_input"),
    ("GLoRA", r"[ab][12]\.weight"),
    ("VeRA", r"vera_\w+(?:\.\w+)?"),
    ("whole weights that replace the network's", r"set_weight|reshape_weight"),
)
_ENDINGS = "|".join(f"(?P<k{index}>{names})" for index, (_, names) in enumerate(_OTHER))
_KINDS = re.compile(rf"\.(?:{_ENDINGS})$")


def sort_entries(keys: Iterable[str]) -> tuple[dict[str, dict[str, str]], tuple[str, ...]]:
    """Return the entries of each of our tensors by kind, and the entries that match no tensor.

    Kinds: "down" and "up" (a pair), "alpha", "diff" (the change of the whole tensor), "up_bias" (the bias of a pair's
    second half, which changes the layer's bias by the pair's scale), "hada_w1_a" .. "hada_w2_b" (LoHa) and "lokr_w1" ..
    "lokr_w2_b" (LoKr). Raises SourceError for an incomplete pair, for two entries with the same meaning, and for
    unsupported adapters (for example DoRA).
    """
    parts: dict[str, dict[str, str]] = {}
    unmatched: list[str] = []
    for key in keys:
        _refuse_other(key)
        tensor, part = _meaning(key)
        if tensor is None:
            unmatched.append(key)
            continue
        twin = parts.setdefault(tensor, {}).setdefault(part, key)
        if twin != key:
            raise SourceError(
                f"{twin} and {key} mean the same", field="lora", hint="give files that hold one adapter each"
            )
    for tensor in list(parts):
        entries = parts[tensor]
        _check_halves(entries)
        if entries.keys() == {"alpha"}:
            unmatched.append(parts.pop(tensor)["alpha"])
    return parts, tuple(unmatched)


def module_of(key: str) -> str:
    """Return the module of an entry, as the file spells it."""
    match = _PART.match(key)
    return match["module"] if match else key


def pair_of(tensor: str) -> str:
    """Return the tensor whose pair gives the scale for `tensor`: for a bias, the weight of its layer."""
    return f"{tensor.removesuffix('.bias')}.weight" if tensor.endswith(".bias") else tensor


def rank_of(shapes: Mapping[str, Sequence[int]]) -> int | None:
    """Return the rank by which alpha is divided, from the shapes of a tensor's entries; None: alpha does not apply."""
    for part, axis in (("down", 0), ("hada_w1_b", 0), ("lokr_w2_b", 0), ("lokr_w1_b", 0)):
        if part in shapes:
            return shapes[part][axis] if shapes[part] else 1
    return None


def fits(shapes: Mapping[str, Sequence[int]], shape: Sequence[int]) -> bool:
    """Return whether entries with these shapes fit a tensor of `shape`."""
    size = prod(shape)
    for part in ("diff", "up_bias"):
        if part in shapes and prod(shapes[part]) != size:
            return False
    if "down" in shapes and _product(shapes["up"], shapes["down"]) != (shape[0], prod(shape[1:])):
        return False
    if "hada_w1_a" in shapes:
        halves = [_product(shapes[f"hada_{one}_a"], shapes[f"hada_{one}_b"]) for one in ("w1", "w2")]
        if halves[0] != halves[1] or halves[0] != (shape[0], prod(shape[1:])):
            return False
    if lokr := [_factor(shapes, one) for one in ("w1", "w2") if any(part.startswith(f"lokr_{one}") for part in shapes)]:
        if None in lokr:
            return False
        rows, columns = (prod(factor[axis] for factor in lokr if factor) for axis in (0, 1))
        return (rows, columns) == (shape[0], prod(shape[1:]))
    return True


def no_match_error(example: str) -> SourceError:
    """Return the error for a file whose entries match no tensor of the network; `example` is one of them."""
    return SourceError(
        f"no entry of the LoRA matches the network; it holds {example!r}",
        field="lora",
        hint="names must be the reference's or ours, plain or after diffusion_model. transformer. unet. lora_unet_",
    )


def shape_error(entry: str, shape: tuple[int, ...]) -> SourceError:
    """Return the error for a change that does not fit its tensor."""
    return SourceError(f"{entry} does not fit a tensor of {shape}", field="lora", hint="is it for this model?")


def check_share(total: int, unmatched: Sequence[str]) -> None:
    """Raise SourceError if more than MOST_UNMATCHED of a file's `total` entries match no tensor."""
    if len(unmatched) > MOST_UNMATCHED * total:
        raise SourceError(
            f"{len(unmatched)} of {total} entries match no tensor: {_few(unmatched)}",
            field="lora",
            hint=f"with more than {MOST_UNMATCHED:.0%} of them the LoRA is for another model; it is not used in part",
        )


def unmatched_warning(file: str, total: int, unmatched: Sequence[str]) -> str:
    """Return the warning about entries of `file` that change nothing; "" if there are none."""
    if not unmatched:
        return ""
    return f"{len(unmatched)} of {total} entries of {file} match no tensor: {_few(unmatched)}"


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _refuse_other(key: str) -> None:
    match = _KINDS.search(key)
    if match is not None:
        kind = next(kind for index, (kind, _) in enumerate(_OTHER) if match[f"k{index}"] is not None)
        raise SourceError(
            f"{key} is of an unsupported adapter: {kind}",
            field="lora",
            hint="supported: LoRA, LoHa, LoKr and changes of whole tensors; convert it to one of them, "
            "or merge it into the weights with the tool that made it",
        )


def _meaning(key: str) -> tuple[str | None, str]:
    """Return our name of the tensor that an entry changes (None if unknown), and the kind of entry."""
    match = _PART.match(_PREFIX.sub("", _WRAPPED.sub("", key)))
    if match is None:
        return None, ""
    part, module = match.lastgroup or "", match["module"]
    if part in ("hada", "lokr"):
        part = f"{part}_{match[part]}"
    elif part == "diff_m":
        names = [f"{name}.modulation" for name in _spellings(module)] + _spellings(module)
        return next(filter(None, map(_table, names)), None), "diff"
    for name in _spellings(module):
        tensor = engine_name(f"{name}.{'bias' if part in _OF_BIAS else 'weight'}")
        if tensor is None and part == "diff":
            tensor = engine_name(name)
        if tensor is not None:
            return tensor, "diff" if part == "diff_b" else part
    return None, ""


def _table(name: str) -> str | None:
    return engine_name(name) if name.rpartition(".")[2] in _TABLES else None


def _spellings(module: str) -> list[str]:
    """Return a module's name as it is, and the name it has if its underscores mean dots."""
    flat = _FLAT.sub("", module).replace(".", "_")
    block = _FLAT_BLOCK.match(flat)
    if block is None:
        return [module, flat_modules(False).get(flat, _flat_table(flat))]
    rest = block["rest"]
    prefix = f"blocks.{block['number']}"
    return [module, prefix if rest is None else f"{prefix}.{flat_modules(True).get(rest, rest)}"]


def _flat_table(flat: str) -> str:
    return {"head_modulation": "head.modulation"}.get(flat, flat)


def _check_halves(entries: Mapping[str, str]) -> None:
    """Raise SourceError if a factor of a product is missing."""
    whole = (
        ("down" in entries) == ("up" in entries)
        and sum(part.startswith("hada_") for part in entries) in (0, 4)
        and all((f"lokr_{one}_a" in entries) == (f"lokr_{one}_b" in entries) for one in ("w1", "w2"))
        and len({part[:7] for part in entries if part.startswith("lokr_")}) in (0, 2)
    )
    if not whole:
        key = next(key for part, key in entries.items() if part not in ("alpha", "diff"))
        raise SourceError(f"{key} is half of a pair", field="lora", hint="get this file again")


def _product(left: Sequence[int], right: Sequence[int]) -> tuple[int, int] | None:
    """Return the shape of a matrix product, all axes after the first flattened; None if the shapes do not fit."""
    if not left or not right or prod(left[1:]) != right[0]:
        return None
    return left[0], prod(right[1:])


def _factor(shapes: Mapping[str, Sequence[int]], one: str) -> tuple[int, int] | None:
    whole = shapes.get(f"lokr_{one}")
    if whole is not None:
        return (whole[0], prod(whole[1:])) if whole else None
    return _product(shapes[f"lokr_{one}_a"], shapes[f"lokr_{one}_b"])
