"""Prompt -> text features."""

from __future__ import annotations

import html
import re
from typing import Any

import torch
from torch import Tensor


def clean_prompt(prompt: str) -> str:
    """Mend broken encodings, resolve HTML entities (twice over) and make every run of white space one blank."""
    import ftfy

    return re.sub(r"\s+", " ", html.unescape(html.unescape(ftfy.fix_text(prompt)))).strip()


class TextEncoder:
    """umT5 over a tokenizer: the features of a prompt's own tokens, end token included.

    Padding to `text_len` would add rows that are masked in the encoder and dropped after it, so none is made; longer
    prompts are cut to `text_len` tokens, the last of them the end token.
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
