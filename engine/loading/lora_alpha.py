"""How strong a LoRA is: alpha from its tensors, its header and adapter_config.json, and whether they agree.

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

#: Shapes of the entries for one tensor, by kind of entry.
Shapes = Mapping[str, Sequence[int]]

#: Relative tolerance: an alpha stored as bfloat16 has three digits.
_SAME = 0.01
_ALPHAS = ("lora_alpha", "alpha", "network_alpha")
_RANKS = ("r", "rank", "lora_rank", "network_dim", "lora_dim")
#: Prefixes of PEFT's metadata about our network; "transformer_2" and "text_encoder" are others.
_OURS = ("", "transformer", "diffusion_model", "unet", "model", "dit", "base_model.model")
#: PEFT's adapter types that can be read.
_PEFT = ("LORA", "LOHA", "LOKR")


@dataclass(frozen=True)
class StatedAlpha:
    """What one source other than the tensors states about alpha; `rank` None: not stated."""

    where: str
    alpha: float
    rank: int | None = None
    #: Scale by the square root of the rank (rsLoRA).
    rooted: bool = False
    alphas: Mapping[str, float] = field(default_factory=dict)
    ranks: Mapping[str, int] = field(default_factory=dict)
    #: From kohya-ss, which also writes alpha as tensors, and other values for convolutions and blocks.
    kohya: bool = False

    def alpha_of(self, modules: Sequence[str]) -> float:
        """Return alpha for the module with these names."""
        return float(_pattern(self.alphas, modules, self.alpha))

    def scale(self, modules: Sequence[str], rank: int) -> float:
        """Return the factor for a pair of `rank`. Raises SourceError if another rank is stated."""
        rank_stated = self.rank and _pattern(self.ranks, modules, self.rank)
        if rank_stated and rank_stated != rank and not self.kohya:
            raise SourceError(
                f"{self.where} says rank {rank_stated}, the tensors of {modules[0]} have rank {rank}",
                field="lora",
                hint="they do not belong together: get the files again",
            )
        return self.alpha_of(modules) / (math.sqrt(rank) if self.rooted else rank)


@dataclass(frozen=True)
class Strengths:
    """Scales of the pairs by tensor, their description for people, and warnings."""

    scales: Mapping[str, float]
    text: str = ""
    warnings: tuple[str, ...] = ()


def alphas_in_header(metadata: Mapping[str, str]) -> list[StatedAlpha]:
    """Return what the metadata of a safetensors header state about alpha. Raises SourceError for invalid values."""
    alphas: list[StatedAlpha] = []
    if "lora_adapter_metadata" in metadata:
        where = "the header's lora_adapter_metadata"
        config = _object(metadata["lora_adapter_metadata"], where)
        for prefix in _OURS:
            own = {
                key.removeprefix(f"{prefix}."): value for key, value in config.items() if key.startswith(f"{prefix}.")
            }
            alphas += _peft(own if prefix else config, where)
    flat = _own(metadata)
    for key in _ALPHAS:
        if key in flat:
            where = f"the header's {key}"
            alphas.append(
                StatedAlpha(
                    where,
                    _alpha(flat[key], where),
                    rank=next((rank for name in _RANKS if (rank := _rank(flat.get(name)))), None),
                    rooted=_yes(flat.get("use_rslora")),
                    alphas=_alpha_pattern(flat.get("alpha_pattern"), where),
                    ranks=_rank_pattern(flat.get("rank_pattern")),
                )
            )
    kohya = metadata.get("ss_network_alpha")
    # Merged or resized files have a word here, and 0 means the rank.
    if kohya is not None and (alpha := _number(kohya)):
        alphas.append(StatedAlpha("the header's ss_network_alpha", alpha, kohya=True))
    return alphas


def alphas_in_config(text: str, where: str) -> list[StatedAlpha]:
    """Return what an adapter_config.json states about alpha. Raises SourceError if it is damaged or unsupported."""
    config = _object(text, where)
    kind = str(config.get("peft_type") or "LORA").upper()
    if kind not in _PEFT:
        raise SourceError(
            f"{where} says the adapter is of kind {kind}", field="lora", hint="supported: LORA, LOHA, LOKR"
        )
    return _peft(config, where)


def strengths(
    parts: Mapping[str, Mapping[str, str]],
    shapes: Mapping[str, Sequence[int]],
    alphas: Mapping[str, float],
    stated: Iterable[StatedAlpha] = (),
) -> Strengths:
    """Determine the scale of every tensor's pair.

    Args:
        parts: entries for each of our tensors, from `sort_entries`.
        shapes: shapes of the file's entries, by name.
        alphas: values of the file's alpha entries, by name.
        stated: what header and config state; if there is no alpha entry either, the scale is 1.

    Raises:
        SourceError: two sources give different scales, or an alpha is not a finite number.
    """
    stated = tuple(stated)
    general = [one for one in stated if not one.kohya]
    kohya, warnings = _kohya(parts, alphas, stated)
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
        others = (*general, *([] if ways else kohya))
        ways += [(one.where, one.where, one.alpha_of(modules), one.scale(modules, max(rank, 1))) for one in others]
        for other in ways[1:]:
            if not math.isclose(ways[0][3], other[3], rel_tol=_SAME):
                raise SourceError(
                    f"{modules[0]}: {ways[0][0]} says alpha {ways[0][2]:g} (scale {ways[0][3]:g}), "
                    f"{other[0]} says alpha {other[2]:g} (scale {other[3]:g})",
                    field="lora",
                    hint="it is not known which of them is right: remove the wrong one, or get the files again",
                )
        if ways:
            _, where, alpha, scales[tensor] = ways[0]
            uses[f"alpha {alpha:g} at rank {rank} (scale {scales[tensor]:g})", where] += 1
        else:
            uses["no alpha (scale 1)", ""] += 1
    return Strengths(scales, _text(uses), warnings)


def _kohya(
    parts: Mapping[str, Mapping[str, str]], alphas: Mapping[str, float], stated: Sequence[StatedAlpha]
) -> tuple[list[StatedAlpha], tuple[str, ...]]:
    """Return what kohya's header states for pairs without alpha, and a warning if it is not used.

    Raises SourceError if it agrees with no alpha tensor.
    """
    of_kohya = [one for one in stated if one.kohya]
    if not of_kohya:
        return [], ()
    if alphas:
        if not any(math.isclose(alpha, one.alpha, rel_tol=_SAME) for alpha in alphas.values() for one in of_kohya):
            key, alpha = next(iter(alphas.items()))
            raise SourceError(
                f"its tensor {key} says alpha {alpha:g}, {of_kohya[0].where} says alpha {of_kohya[0].alpha:g}",
                field="lora",
                hint="it is not known which of them is right: remove the wrong one, or get the file again",
            )
        return of_kohya, ()
    if any(key.startswith(("lora_", "lycoris_")) for keys in parts.values() for key in keys.values()):
        return of_kohya, ()
    # kohya's converter multiplies the scale into the weights, drops the alpha tensors and keeps the header.
    if any(not one.kohya for one in stated):
        return [], ()
    text = (
        f"{of_kohya[0].where} ({of_kohya[0].alpha:g}) is not used: in a file whose names were converted the weights "
        "already include the scale; if these do not, set it as the LoRA's scale"
    )
    return [], (text,)


def _text(uses: Counter[tuple[str, str]]) -> str:
    """Return a description of the alphas, the most frequent first."""
    parts = [f"{what} from {where}" if where else what for (what, where), _ in uses.most_common(2)]
    return ", ".join(parts) + (f" and {len(uses) - 2} more" if len(uses) > 2 else "")


def _modules(tensor: str, keys: Mapping[str, str]) -> tuple[str, ...]:
    """Return the names that a source may use for the module of `tensor`: the file's and ours."""
    return module_of(next(iter(keys.values()))), tensor.rpartition(".")[0]


def _pattern(patterns: Mapping[str, Any], modules: Sequence[str], default: Any) -> Any:
    """Return the value of the first pattern that matches a module's name or its end, as PEFT matches them."""
    for pattern, value in patterns.items():
        if any(_ends(pattern).match(module) for module in modules):
            return value
    return default


@lru_cache(maxsize=1024)
def _ends(pattern: str) -> re.Pattern[str]:
    """Return PEFT's regular expression for a pattern. Raises SourceError for an invalid or very slow one."""
    try:
        if len(pattern) > 300 or re.search(r"\)\s*[*+?{]|\{", pattern) or sum(map(pattern.count, "*+?")) > 4:
            raise re.error("too complex")
        return re.compile(rf"(?:.*\.)?(?:{pattern})$")
    except (re.error, RecursionError, OverflowError) as error:
        raise SourceError(
            f"the module pattern {pattern[:60]!r} is not supported: {error}",
            field="lora",
            hint="write module names in full",
        ) from error


def _peft(config: Mapping[str, Any], where: str) -> list[StatedAlpha]:
    if config.get("use_dora"):
        raise SourceError(
            f"{where} says use_dora: DoRA adapters are not supported",
            field="lora",
            hint="merge it into the weights with the tool that made it",
        )
    if config.get("lora_alpha", config.get("alpha")) is None:
        return []
    return [
        StatedAlpha(
            where,
            _alpha(config.get("lora_alpha", config.get("alpha")), where),
            rank=_rank(config.get("r")),
            rooted=_yes(config.get("use_rslora")),
            alphas=_alpha_pattern(config.get("alpha_pattern"), where),
            ranks=_rank_pattern(config.get("rank_pattern")),
        )
    ]


def _own(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return the metadata about our network, without its prefix."""
    own: dict[str, str] = {}
    for key, value in metadata.items():
        prefix, _, name = key.rpartition(".")
        if prefix in _OURS:
            own.setdefault(name, value)
    return own


def _object(text: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{where} is not JSON", field="lora", hint="get the file again") from error
    if not isinstance(value, dict):
        raise SourceError(f"{where} is not a JSON object", field="lora", hint="get the file again")
    return value


def _alpha_pattern(value: Any, where: str) -> dict[str, float]:
    pattern = _mapping(value)
    return {str(key): _alpha(alpha, f"{where} for {key}") for key, alpha in pattern.items()}


def _rank_pattern(value: Any) -> dict[str, int]:
    return {str(key): rank for key, number in _mapping(value).items() if (rank := _rank(number))}


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
