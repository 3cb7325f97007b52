"""Who speaks where, with silent bystanders: masks and tracks -> the constants of L-RoPE."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.errors import RequestError
from engine.network.embeddings import rotary_frequencies
from engine.network.speakers import Speakers, label_ranges, rotary_at

#: Speakers with a label range of their own.
SPEAKERS = 2
#: Index of the background's mask; all masks after it are bystanders, who count as background.
BACKGROUND = 2
#: The background's label if there are bystanders; without them it is midway between the speakers.
FAR = 100.0


def prepare_tracks(
    masks: Tensor,
    tracks: int,
    audio_tokens: int,
    head_dim: int,
    class_range: int,
    class_interval: int,
    dtype: torch.dtype,
    device: torch.device | None = None,
) -> Speakers:
    """Turn token masks (K, S) of two speakers, the background and bystanders into the constants of L-RoPE.

    `tracks` is the number of voices: 2, or 3 with a silent track of the bystanders, whose audio tokens get the
    background's label. `audio_tokens` is the number of tokens of one voice in one latent frame. The other arguments are
    those of `engine.network.speakers.prepare_speakers`, and an empty mask gets no token, as there. Raises
    RequestError for other numbers of masks or tracks.
    """
    classes = masks.shape[0]
    if not SPEAKERS < classes <= head_dim:
        raise RequestError(
            f"{classes} masks",
            field="speaker_masks",
            hint=f"give {SPEAKERS + 1} to {head_dim}: two speakers, the background, bystanders",
        )
    if tracks not in (SPEAKERS, SPEAKERS + 1):
        raise RequestError(
            f"{tracks} voices with masks",
            field="audio_windows",
            hint="give those of two speakers, and a silent one for bystanders",
        )
    tokens = masks.sum(dim=1)
    if not torch.compiler.is_compiling() and not bool(tokens.any()):
        raise RequestError("every mask is empty", field="speaker_masks", hint="mark at least one region")
    starts, between = label_ranges(SPEAKERS, class_range, class_interval)
    background = between if classes == SPEAKERS + 1 else FAR
    spans = torch.zeros(classes)
    spans[:SPEAKERS] = class_interval
    voices = torch.tensor([*(start + class_interval / 2 for start in starts), background][:tracks])
    device = masks.device if device is None else device
    tokens, masks = tokens.to(device), masks.to(device)
    frequencies = rotary_frequencies(head_dim).float().to(device)
    return Speakers(
        # Padded to the head dimension, because fused kernels need values as wide as keys.
        values=F.pad(masks.T, (0, head_dim - classes)).to(dtype)[None, :, None],
        sums=tokens.clamp(min=1).float(),
        penalty=torch.zeros(classes, device=device).masked_fill(tokens == 0, -torch.inf),
        starts=torch.tensor([*starts, *[background] * (classes - SPEAKERS)]).to(device),
        spans=spans.to(device),
        frequencies=frequencies,
        keys=rotary_at(voices.repeat_interleave(audio_tokens).to(device), frequencies),
    )
