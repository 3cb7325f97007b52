"""Warnings in plan and answer about prompts that are longer than the text encoder's limit.

A plan uses the tokenizer's file, which needs no torch; a generation uses the encoder itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from engine.assembly.location import weights_of
from engine.config import Config
from engine.data import Plan, Request
from engine.loading.layout import find_parts
from engine.network.prompts import lost_of_file, tell_lost

#: Prompt -> the text that is cut off, and the number of tokens that are kept.
Lost = Callable[[str], tuple[str, int]]


def prompts_of(request: Request, config: Config) -> tuple[tuple[str, ...], str]:
    """Return the prompts that steer a request, in the order of time, and its negative prompt."""
    return tuple(cue.value for cue in request.prompts) or (request.prompt,), negative_prompt(request, config)


def negative_prompt(request: Request, config: Config) -> str:
    """Return the request's negative prompt, or the model's."""
    return config.model.negative_prompt if request.negative_prompt is None else request.negative_prompt


def with_prompts(plan: Plan, request: Request, config: Config, branches: Sequence[str], lost: Lost) -> Plan:
    """Return `plan` with a warning for each truncated prompt that the guidance's `branches` use."""
    texts = [(f"prompts[{index}]", cue.value) for index, cue in enumerate(request.prompts)]
    texts = texts or [("prompt", request.prompt)]
    if {"drop_text", "uncond"} & set(branches):
        texts.append(("negative prompt", negative_prompt(request, config)))
    warnings = []
    for what, text in texts:
        lost_words, kept_tokens = lost(text)
        if lost_words:
            warnings.append(tell_lost(what, lost_words, kept_tokens))
    return replace(plan, warnings=(*plan.warnings, *warnings)) if warnings else plan


def lost_by(config: Config, folder: Path) -> Lost:
    """Return the function that uses the tokenizer in a folder of weights; a family without one loses nothing."""
    if "tokenizer" not in config.family.components:
        return lambda _prompt: ("", 0)
    parts, _ = find_parts(folder, replace(weights_of(config), components=("transformer", "tokenizer")))
    transformer = parts["transformer"]
    settings = transformer.config or transformer.folder / "config.json"
    return lambda prompt: lost_of_file(parts["tokenizer"].folder, settings, prompt)
