"""Who speaks where: speaker masks and attention scores -> positions on the label axis (L-RoPE).

Tokens of a speaker's face and that speaker's audio tokens get rotary positions from the same label range, so that
attention finds the voice by its phase. Source: MultiTalk, arXiv:2505.22647, section 3.3.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.errors import RequestError
from engine.network.embeddings import Rotary, rotary_frequencies, rotary_table
from engine.network.sequence import Shard


class Speakers(NamedTuple):
    """The constants of L-RoPE for one window; C = speakers + 1, background last.

    `values`: token masks as attention values, (1, S, 1, head_dim), 0 or 1 in the first C channels, zero beyond.
    `sums`: tokens per class (C,), at least 1; `penalty`: (C,), -inf for a class without tokens, else 0.
    `starts`, `spans`: label range per class (C,). `frequencies`: (head_dim / 2,). `keys`: rotary table of the audio
    tokens. All but `values` float32; the dtype of `values` is that in which scores are computed.
    """

    values: Tensor
    sums: Tensor
    penalty: Tensor
    starts: Tensor
    spans: Tensor
    frequencies: Tensor
    keys: Rotary


def label_ranges(speakers: int, class_range: int, class_interval: int) -> tuple[list[float], float]:
    """Return the start of every speaker's label range, and the background's label.

    Two speakers have the reference's ranges: [0, 4] and [20, 24], background 12. Three and more are **experimental**
    (no published weights were trained with them): ranges of the same length start at equal distances, and the
    background is midway between the first two.
    """
    step = (class_range - class_interval) / (speakers - 1)
    return [step * index for index in range(speakers)], (class_interval + step) / 2


def token_masks(masks: Tensor, rows: int, columns: int) -> Tensor:
    """Resize masks (C, h, w), inside where above 0, to tokens by nearest neighbour: bool (C, rows * columns)."""
    resized = F.interpolate(masks[None].float(), size=(rows, columns), mode="nearest")[0]
    return (resized > 0).flatten(1)


def prepare_speakers(
    masks: Tensor,
    audio_tokens: int,
    head_dim: int,
    class_range: int,
    class_interval: int,
    dtype: torch.dtype,
    device: torch.device | None = None,
) -> Speakers:
    """Turn token masks (C, S) of two or more speakers and the background into the constants of L-RoPE.

    `audio_tokens` is the number of tokens of one speaker in one latent frame. `device` is the device of the constants;
    None: that of the masks. Masks on the CPU need no read from a device. An empty mask gets no token; the reference
    divides 0 by 0 there, and assigns every token to the background. Raises RequestError if all are empty; a compiled or
    exported network cannot look at values, and assigns every token to the first speaker then.
    """
    classes = masks.shape[0]
    if classes > head_dim:
        raise RequestError(
            f"{classes - 1} speakers do not fit attention heads of {head_dim} channels",
            field="speaker_masks",
            hint=f"give at most {head_dim - 1}",
        )
    tokens = masks.sum(dim=1)
    if not torch.compiler.is_compiling() and not bool(tokens.any()):
        raise RequestError("every mask is empty", field="speaker_masks", hint="mark at least one region")
    starts, background = label_ranges(classes - 1, class_range, class_interval)
    device = masks.device if device is None else device
    tokens, masks = tokens.to(device), masks.to(device)
    frequencies = rotary_frequencies(head_dim).float().to(device)
    positions = torch.tensor(starts) + class_interval / 2
    spans = torch.full((classes,), float(class_interval), device=device)
    spans[-1] = 0.0
    return Speakers(
        # Padded to the head dimension, because fused kernels need values as wide as keys.
        values=F.pad(masks.T, (0, head_dim - classes)).to(dtype)[None, :, None],
        sums=tokens.clamp(min=1).float(),
        penalty=torch.zeros(classes, device=device).masked_fill(tokens == 0, -torch.inf),
        starts=torch.tensor([*starts, background]).to(device),
        spans=spans,
        frequencies=frequencies,
        # Repeated on the CPU: on a device the host would wait for the length of the result.
        keys=rotary_at(positions.repeat_interleave(audio_tokens).to(device), frequencies),
    )


def rotary_at(positions: Tensor, frequencies: Tensor) -> Rotary:
    """Return a float32 rotary table for positions (L,) on the label axis."""
    return rotary_table(positions[:, None] * frequencies)


def label_positions(scores: Tensor, speakers: Speakers, shard: Shard | None = None) -> Tensor:
    """Place every token on the label axis: (L,), float32.

    `scores` (C, L) are how much a token attends to each class's part of the first frame. A token belongs to its best
    class, and its position in that class's range is its score, normalised over all tokens, including those of other
    processes.
    """
    low, high = torch.aminmax(scores, dim=1, keepdim=True)
    if shard is not None:
        low, high = shard.extent(low, high)
    positions = speakers.starts[:, None] + speakers.spans[:, None] * ((scores - low) / (high - low + 1e-8))
    best = (scores + speakers.penalty[:, None]).argmax(dim=0, keepdim=True)
    return positions.gather(0, best)[0]
