"""All recipes for cards, one after the other: `python -m engine.rehearsal.recipes SHARE COUNT` prints JSON lines."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from engine.planning.gpus import find_card
from engine.rehearsal.rehearse import default_card, rehearse
from engine.rehearsal.walk import Scene

RECIPES = ("card-24gb", "card-24gb-720p", "card-48gb", "card-48gb-720p", "card-80gb", "card-80gb-720p")
#: Recipes of a model for one speaker, whose modes differ only in the number of steps, of which a rehearsal makes two.
SINGLE = ("flashtalk-24gb", "flashtalk-48gb", "flashtalk-80gb")
#: Recipes of a model whose modes have the same settings.
ONE_MODE = ("longcat-24gb", "longcat-48gb", "longcat-80gb")
#: Choices that are in no recipe, on a card with 80 GB, with few blocks: overrides and number of speakers.
OTHERS: tuple[tuple[tuple[str, ...], int], ...] = (
    (("memory=lowest", "quant=int8"), 3),
    (("memory=group-offload", "quant=fp8-quanto", "memory.blocks=2"), 2),
    (("memory=group-offload", "quant=gguf", "cache=teacache"), 2),
    (("memory=group-offload", "cache=firstblock", "guidance=apg"), 1),
    (("memory=model-offload", "quant=int8", "sampler=unipc"), 2),
    (("memory=none", "cache=firstblock"), 2),
    (("memory=none", "cache=taylorseer", "cache.warmup=2"), 2),
    (("memory=none", "quant=gguf", "sampler=unipc"), 3),
    (("memory=text-offload", "quant=fp8-quanto", "cache=teacache", "cache.warmup=1"), 2),
    (("memory=text-offload", "recipe=long"), 2),
    (("model=infinitetalk", "memory=group-offload", "quant=int8-quanto"), 2),
    (("sampler=turbo", "lora.mode=merged", "memory=none"), 2),
    (("memory=none", "quant=int8-dynamic"), 2),
    (("memory=model-offload", "quant=fp8-dynamic"), 2),
    (("memory=group-offload", "quant=int8-quanto-dynamic", "sampler=turbo"), 2),
    (("memory=none", "cache=magcache", "residual_dtype=bfloat16"), 2),
)
#: Number of blocks for these.
_BLOCKS = 5


def reports(share: int, count: int) -> Iterator[dict[str, Any]]:
    """Yield the reports of every `count`-th rehearsal, from number `share` on."""
    runs: list[tuple[Sequence[str], Scene]] = [
        ([f"recipe={recipe}", f"sampler={sampler}"], Scene(speakers))
        for recipe in RECIPES
        for sampler in ("standard", "turbo")
        for speakers in (1, 2)
    ]
    runs += [([f"recipe={recipe}", "sampler=standard"], Scene(1)) for recipe in SINGLE]
    runs += [([f"recipe={recipe}", "sampler=standard"], Scene(speakers)) for recipe in ONE_MODE for speakers in (1, 2)]
    large = find_card("H200 141 GB")
    assert large is not None
    others = [(["model=multitalk", *words], Scene(speakers, blocks=_BLOCKS)) for words, speakers in OTHERS]
    for overrides, scene in [*runs, *others][share::count]:
        card = default_card(overrides) if scene.blocks is None else large
        report = rehearse(overrides, card, scene)
        yield {"overrides": list(overrides), **report.as_json()}


def main(words: Sequence[str]) -> None:
    """Print one JSON object per line."""
    share, count = map(int, words)
    for report in reports(share, count):
        print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
