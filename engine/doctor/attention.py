"""Runs an attention backend once, on small tensors, and compares it with plain operations."""

from __future__ import annotations

from engine.data.attention import AttentionChoice, AttentionSite, TokenGrid


def try_attention(choice: AttentionChoice, site: AttentionSite) -> float:
    """Run an attention backend once; return its largest error, as a share of the largest exact value.

    A sparse backend is told that all tokens are in one frame, whose tokens all see each other.
    """
    import torch

    from engine.network.attention import prepare_attention
    from engine.network.compat import dispatch_attention_fn

    dtype = {"bfloat16": torch.bfloat16, "float32": torch.float32}[site.dtype]
    random = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 256, 4, 128, generator=random).to(site.device, dtype) for _ in range(3))
    with torch.no_grad():
        if choice.attend is None:
            result = dispatch_attention_fn(query, key, value, backend=prepare_attention(choice.kernel)).float()
        else:
            result = choice.attend(query, key, value, TokenGrid(1, 16, 16)).float()
        scores = torch.einsum("blhd,bmhd->bhlm", query.float(), key.float()) / 128**0.5
        plain = torch.einsum("bhlm,bmhd->blhd", scores.softmax(-1), value.float())
    return float((result - plain).abs().max() / plain.abs().max())
