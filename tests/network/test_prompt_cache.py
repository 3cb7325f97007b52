"""Features of earlier prompts: found again, bounded in bytes, and none without a bound."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.network.prompt_cache import PromptCache


def encode(prompt: str) -> Tensor:
    # 4 kB for any prompt.
    return torch.full((1, 4, 256), float(len(prompt)))


def test_a_prompt_is_encoded_once_whatever_its_spaces() -> None:
    cache, asked = PromptCache(10_000), list[str]()

    def listen(prompt: str) -> Tensor:
        asked.append(prompt)
        return encode(prompt)

    features = [cache.once(prompt, listen) for prompt in ("a face", "a  face ", "another")]

    assert asked == ["a face", "another"]
    assert torch.equal(features[0], features[1])


def test_what_was_used_least_recently_goes_first() -> None:
    cache = PromptCache(9_000)
    for prompt in ("one", "two", "one", "three"):
        cache.once(prompt, encode)

    assert cache.find("two") is None
    assert cache.find("one") is not None
    assert cache.size == 2 * 4096


def test_without_a_bound_nothing_is_kept() -> None:
    cache = PromptCache()
    cache.once("a face", encode)

    assert cache.find("a face") is None
