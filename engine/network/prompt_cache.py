"""Features of prompts that were encoded before, so that a job with a known prompt does not run the text encoder."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

from engine.network.prompts import clean_prompt

if TYPE_CHECKING:
    from torch import Tensor


class PromptCache:
    """Features by the SHA-256 of their prompt, on the CPU, in memory only: prompts are the callers' data.

    A cache belongs to one loaded text encoder. If it has more than `most` bytes, it drops what was used least recently.
    """

    def __init__(self, most: int = 0) -> None:
        """Start empty; `most` 0: keep nothing."""
        self._most = most
        self._features: OrderedDict[bytes, Tensor] = OrderedDict()

    @property
    def size(self) -> int:
        """Bytes of all features."""
        return sum(features.nbytes for features in self._features.values())

    def find(self, prompt: str) -> Tensor | None:
        """Return the features of a prompt, None if they are not known."""
        return self._find(_key(prompt))

    def once(self, prompt: str, encode: Callable[[str], Tensor]) -> Tensor:
        """Return the features of a prompt, encoded if they are not known, on any device."""
        key = _key(prompt)
        found = self._find(key)
        if found is not None:
            return found
        features = encode(prompt)
        if features.nbytes <= self._most:
            # A copy, so that nothing larger than the features stays in memory.
            self._features[key] = features.to("cpu", copy=True)
            while self.size > self._most:
                self._features.popitem(last=False)
        return features

    def _find(self, key: bytes) -> Tensor | None:
        found = self._features.get(key)
        if found is not None:
            self._features.move_to_end(key)
        return found

    def clear(self) -> None:
        """Forget all prompts."""
        self._features.clear()


def _key(prompt: str) -> bytes:
    return hashlib.sha256(clean_prompt(prompt).encode("utf-8", "surrogatepass")).digest()
