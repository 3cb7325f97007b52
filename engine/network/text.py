"""Prompt -> text features."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from engine.network.prompts import clean_prompt, lost_words, surely_whole

__all__ = ["TextEncoder", "clean_prompt"]


class TextEncoder:
    """umT5 with its tokenizer: the features of a prompt's own tokens, including the end token.

    There is no padding to `text_len`: padded rows would be masked in the encoder and dropped after it. Longer prompts
    are cut to `text_len` tokens, the last of which is the end token.
    """

    def __init__(self, tokenizer: Any, model: Any, text_len: int) -> None:
        self.tokenizer = tokenizer
        self.model = model
        self.text_len = text_len

    @torch.no_grad()
    def encode(self, prompt: str) -> Tensor:
        """Return the features of a prompt, (1, at most text_len, text_dim), in the model's dtype."""
        tokens = self.tokenizer(
            [clean_prompt(prompt)],
            max_length=self.text_len,
            truncation=True,
            add_special_tokens=True,
            return_attention_mask=True,
            return_tensors="pt",
        )
        device = next(self.model.parameters()).device
        output = self.model(input_ids=tokens.input_ids.to(device), attention_mask=tokens.attention_mask.to(device))
        features: Tensor = output.last_hidden_state
        return features

    def lost(self, prompt: str) -> str:
        """Return the words of a prompt that `encode` cuts off; "" for none."""
        cleaned = clean_prompt(prompt)
        if surely_whole(cleaned, self.text_len):
            return ""
        if not self.tokenizer.is_fast:
            # This tokenizer has no offsets: the remaining tokens are decoded instead.
            ids = self.tokenizer(cleaned, verbose=False).input_ids
            rest: str = self.tokenizer.decode(ids[self.text_len - 1 :], skip_special_tokens=True)
            return rest.strip() if len(ids) > self.text_len else ""
        tokens = self.tokenizer(cleaned, return_offsets_mapping=True, truncation=False, verbose=False)
        return lost_words(cleaned, tokens.offset_mapping, self.text_len)
