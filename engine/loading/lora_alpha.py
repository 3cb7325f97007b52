"""How strong a LoRA is meant: alpha by its tensors, by its header, by adapter_config.json, and whether they agree.

Sources: PEFT's LoraConfig (r, lora_alpha, use_rslora, rank_pattern, alpha_pattern), which diffusers writes into the
header as `lora_adapter_metadata`; flat keys of lightx2v, SimpleTuner and others; kohya-ss' ss_network_alpha.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from engine.errors import SourceError
from engine.loading.lora_names import module_of, rank_of

#: Sizes of a tensor's entries, by what they are.
Shapes = Mapping[str, Sequence[int]]

#: An alpha that was kept in bfloat16 has three digits.
_SAME = 0.01
_ALPHAS = ("lora_alpha", "alpha", "network_alpha")
_RANKS = ("r", "rank", "lora_rank", "network_dim", "lora_dim")
#: Whom PEFT's metadata is about; "transformer_2" and "text_encoder" are not our network.
_OURS = ("", "transformer", "diffusion_model", "unet", "model", "dit", "base_model.model")
#: Kinds of PEFT whose entries a LoRA's reader knows.
_PEFT = ("LORA", "LOHA", "LOKR")


@dataclass(frozen=True)
class Told:
    """What one source beside the tensors says about alpha; `rank` None: nothing."""

    where: str
    alpha: float
    rank: int | None = None
    #: Scale by the root of the rank (rsLoRA).
    rooted: bool = False
    alphas: Mapping[str, float] = field(default_factory=dict)
    ranks: Mapping[str, int] = field(default_factory=dict)
    #: By kohya-ss, which always writes alpha as tensors, too, and for convolutions and blocks others than this one.
    kohya: bool = False

    def alpha_of(self, modules: Sequence[str]) -> float:
        """Return alpha of the module of these names."""
        return float(_pattern(self.alphas, modules, self.alpha))

    def scale(self, modules: Sequence[str], rank: int) -> float:
        """Return by what a pair of `rank` is multiplied. Raises SourceError where another rank is stated."""
        stated = self.rank and _pattern(self.ranks, modules, self.rank)
        if stated and stated != rank and not self.kohya:
            raise SourceError(
                f"{self.where} says rank {stated}, the tensors of {modules[0]} have rank {rank}",
                field="lora",
                hint="they do not belong together: get the files again",
            )
        return self.alpha_of(modules) / (math.sqrt(rank) if self.rooted else rank)


@dataclass(frozen=True)
class Strengths:
    """Scales of the pairs by tensor, what a person is told about them, and what might not be as one expects."""

    scales: Mapping[str, float]
    text: str = ""
    warnings: tuple[str, ...] = ()


def header_says(metadata: Mapping[str, str]) -> list[Told]:
    """Return what the metadata of a safetensors header say. Raises SourceError for values that are none."""
    found: list[Told] = []
    if "lora_adapter_metadata" in metadata:
        where = "the header's lora_adapter_metadata"
        told = _object(metadata["lora_adapter_metadata"], where)
        for prefix in _OURS:
            own = {key.removeprefix(f"{prefix}."): value for key, value in told.items() if key.startswith(f"{prefix}.")}
            found += _peft(own if prefix else told, where)
    flat = _own(metadata)
    for key in _ALPHAS:
        if key in flat:
            where = f"the header's {key}"
            found.append(
                Told(
                    where,
                    _alpha(flat[key], where),
                    rank=next((rank for name in _RANKS if (rank := _rank(flat.get(name)))), None),
                    rooted=_yes(flat.get("use_rslora")),
                    alphas=_alpha_pattern(flat.get("alpha_pattern"), where),
                    ranks=_rank_pattern(flat.get("rank_pattern")),
                )
            )
    kohya = metadata.get("ss_network_alpha")
    # What a merged or resized file says there is a word, and 0 means the rank.
    if kohya is not None and (alpha := _number(kohya)):
        found.append(Told("the header's ss_network_alpha", alpha, kohya=True))
    return found


def config_says(text: str, where: str) -> list[Told]:
    """Return what an adapter_config.json says. Raises SourceError where it is damaged or of another kind."""
    told = _object(text, where)
    kind = str(told.get("peft_type") or "LORA").upper()
    if kind not in _PEFT:
        raise SourceError(f"{where} says the adapter is of kind {kind}", field="lora", hint="read are LORA, LOHA, LOKR")
    return _peft(told, where)


def strengths(
    parts: Mapping[str, Mapping[str, str]],
    shapes: Mapping[str, Sequence[int]],
    alphas: Mapping[str, float],
    told: Iterable[Told] = (),
) -> Strengths:
    """Settle the scale of every tensor's pair.

    Args:
        parts: entries of each of our tensors, as `sort_entries` gives them.
        shapes: shapes of the file's entries, by name.
        alphas: values of its entries of alpha, by name.
        told: what header and config say; where there is no entry of alpha either, the scale is 1.

    Raises:
        SourceError: two sources make different scales, both named; or an alpha that is no number.
    """
    told = tuple(told)
    general = [one for one in told if not one.kohya]
    kohya, warnings = _kohya(parts, alphas, told)
    scales: dict[str, float] = {}
    uses: Counter[tuple[str, str]] = Counter()
    for tensor, keys in parts.items():
        own = {part: shapes[key] for part, key in keys.items()}
        rank = rank_of(own)
        if rank is None:
            continue
        modules = _modules(tensor, keys)
        ways: list[tuple[str, str, float, float]] = []
        if "alpha" in keys:
            alpha = alphas[keys["alpha"]]
            if not math.isfinite(alpha):
                raise SourceError(f"{keys['alpha']} is {alpha}", field="lora", hint="get this file again")
            ways.append((f"its tensor {keys['alpha']}", "its own tensors", alpha, alpha / max(rank, 1)))
        for one in (*general, *([] if ways else kohya)):
            ways.append((one.where, one.where, one.alpha_of(modules), one.scale(modules, max(rank, 1))))
        for other in ways[1:]:
            if not math.isclose(ways[0][3], other[3], rel_tol=_SAME):
                raise SourceError(
                    f"{modules[0]}: {ways[0][0]} says alpha {ways[0][2]:g} (scale {ways[0][3]:g}), "
                    f"{other[0]} says alpha {other[2]:g} (scale {other[3]:g})",
                    field="lora",
                    hint="which of them holds is not known: take the wrong one out, or get the files again",
                )
        if ways:
            _, where, alpha, scales[tensor] = ways[0]
            uses[f"alpha {alpha:g} at rank {rank} (scale {scales[tensor]:g})", where] += 1
        else:
            uses["no alpha (scale 1)", ""] += 1
    return Strengths(scales, _text(uses), warnings)


def _kohya(
    parts: Mapping[str, Mapping[str, str]], alphas: Mapping[str, float], told: Sequence[Told]
) -> tuple[list[Told], tuple[str, ...]]:
    """Return what kohya's header may say for pairs without alpha, and a warning where it may not.

    Raises SourceError where it agrees with no tensor of alpha.
    """
    found = [one for one in told if one.kohya]
    if not found:
        return [], ()
    if alphas:
        if not any(math.isclose(alpha, one.alpha, rel_tol=_SAME) for alpha in alphas.values() for one in found):
            key, alpha = next(iter(alphas.items()))
            raise SourceError(
                f"its tensor {key} says alpha {alpha:g}, {found[0].where} says alpha {found[0].alpha:g}",
                field="lora",
                hint="which of them holds is not known: take the wrong one out, or get the file again",
            )
        return found, ()
    if any(key.startswith(("lora_", "lycoris_")) for keys in parts.values() for key in keys.values()):
        return found, ()
    # kohya's converter takes the scale into the weights, drops the tensors of alpha and keeps the header.
    if any(not one.kohya for one in told):
        return [], ()
    text = (
        f"{found[0].where} ({found[0].alpha:g}) is not used: in a file whose names were converted the weights hold "
        "their scale already; if these do not, say it as the LoRA's scale"
    )
    return [], (text,)


def _text(uses: Counter[tuple[str, str]]) -> str:
    """Return the alphas in words, the most frequent first."""
    shown = [f"{what} from {where}" if where else what for (what, where), _ in uses.most_common(2)]
    return ", ".join(shown) + (f" and {len(uses) - 2} more" if len(uses) > 2 else "")


def _modules(tensor: str, keys: Mapping[str, str]) -> tuple[str, ...]:
    """Return the names by which a source may mean the module of `tensor`: as the file has it, and ours."""
    return module_of(next(iter(keys.values()))), tensor.rpartition(".")[0]


def _pattern(patterns: Mapping[str, Any], modules: Sequence[str], default: Any) -> Any:
    """Return what the first pattern that is a module's name, or its end, says: as PEFT matches them."""
    for pattern, value in patterns.items():
        if any(_ends(pattern).match(module) for module in modules):
            return value
    return default


@lru_cache(maxsize=1024)
def _ends(pattern: str) -> re.Pattern[str]:
    """Return PEFT's regular expression for a pattern. Raises SourceError for one that might never end, or is none."""
    try:
        if len(pattern) > 300 or re.search(r"\)\s*[*+?{]|\{", pattern) or sum(map(pattern.count, "*+?")) > 4:
            raise re.error("too involved")
        return re.compile(rf"(?:.*\.)?(?:{pattern})$")
    except (re.error, RecursionError, OverflowError) as error:
        raise SourceError(
            f"a pattern of modules, {pattern[:60]!r}, is not read: {error}", field="lora", hint="write modules in full"
        ) from error


def _peft(told: Mapping[str, Any], where: str) -> list[Told]:
    if told.get("use_dora"):
        raise SourceError(
            f"{where} says use_dora: the adapter is of another kind (DoRA)",
            field="lora",
            hint="merge it into the weights with the tool that made it",
        )
    if told.get("lora_alpha", told.get("alpha")) is None:
        return []
    return [
        Told(
            where,
            _alpha(told.get("lora_alpha", told.get("alpha")), where),
            rank=_rank(told.get("r")),
            rooted=_yes(told.get("use_rslora")),
            alphas=_alpha_pattern(told.get("alpha_pattern"), where),
            ranks=_rank_pattern(told.get("rank_pattern")),
        )
    ]


def _own(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return the metadata that are about our network, without its prefix."""
    found: dict[str, str] = {}
    for key, value in metadata.items():
        prefix, _, name = key.rpartition(".")
        if prefix in _OURS:
            found.setdefault(name, value)
    return found


def _object(text: str, where: str) -> dict[str, Any]:
    try:
        told = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{where} is no JSON", field="lora", hint="get the file again") from error
    if not isinstance(told, dict):
        raise SourceError(f"{where} is no JSON object", field="lora", hint="get the file again")
    return told


def _alpha_pattern(value: Any, where: str) -> dict[str, float]:
    told = _mapping(value)
    return {str(key): _alpha(alpha, f"{where} for {key}") for key, alpha in told.items()}


def _rank_pattern(value: Any) -> dict[str, int]:
    return {str(key): rank for key, told in _mapping(value).items() if (rank := _rank(told))}


def _mapping(value: Any) -> Mapping[str, Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return {}
    return value if isinstance(value, Mapping) else {}


def _alpha(value: Any, where: str) -> float:
    number = _number(value)
    if not number:
        raise SourceError(f"{where} is {str(value)[:40]!r}", field="lora", hint="alpha must be a number above 0")
    return number


def _rank(value: Any) -> int | None:
    number = _number(value)
    return int(number) if number and number == int(number) else None


def _number(value: Any) -> float | None:
    """Return a number above 0; None for anything else."""
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and number > 0 else None


def _yes(value: Any) -> bool:
    return value is True or str(value).strip().lower() in ("true", "1")
