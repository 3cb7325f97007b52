"""Config -> how this process computes: device, number formats, attention kernel, and its place among others."""

from __future__ import annotations

from engine.assembly.attention import choose_attention
from engine.assembly.followers import ProcessGroup
from engine.assembly.provenance import Runtime
from engine.config import Config
from engine.data import AttentionChoice
from engine.plugin.manager import Registry
from engine.runtime.device import attention_site, pick_decode_dtype, pick_device, pick_dtype


def make_runtime(config: Config, registry: Registry, group: ProcessGroup) -> tuple[Runtime, AttentionChoice]:
    """Return how this process of `group` computes, and its attention kernel. Raises ConfigError and MissingExtra."""
    device = pick_device(config.device)
    dtype = pick_dtype(config.dtype, device)
    decode_dtype = pick_decode_dtype(config.vae.decode_dtype, device, dtype)
    choice = choose_attention(config.attention, registry, attention_site(device, dtype, group.size))
    runtime = Runtime(device, dtype, choice.kernel, decode_dtype, group.size, group.sharing, alone=group.follows)
    return runtime, choice
