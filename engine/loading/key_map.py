"""The reference's tensor names <-> ours: a complete, invertible map, one name at a time."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from engine.errors import SourceError

# Reference module -> ours. Only whole dotted modules are matched, longest first.
_ROOT = {
    "patch_embedding": "patch_embedding",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "img_emb.proj.0": "condition_embedder.image_embedder.norm1",
    "img_emb.proj.1": "condition_embedder.image_embedder.ff.net.0.proj",
    "img_emb.proj.3": "condition_embedder.image_embedder.ff.net.2",
    "img_emb.proj.4": "condition_embedder.image_embedder.norm2",
    "head.head": "proj_out",
    "audio_proj.proj1": "audio_proj.proj1",
    "audio_proj.proj1_vf": "audio_proj.proj1_vf",
    "audio_proj.proj2": "audio_proj.proj2",
    "audio_proj.proj3": "audio_proj.proj3",
    "audio_proj.norm": "audio_proj.norm",
}
_BLOCK = {
    "self_attn.q": "attn1.to_q",
    "self_attn.k": "attn1.to_k",
    "self_attn.v": "attn1.to_v",
    "self_attn.o": "attn1.to_out.0",
    "self_attn.norm_q": "attn1.norm_q",
    "self_attn.norm_k": "attn1.norm_k",
    "cross_attn.q": "attn2.to_q",
    "cross_attn.k": "attn2.to_k",
    "cross_attn.v": "attn2.to_v",
    "cross_attn.o": "attn2.to_out.0",
    "cross_attn.k_img": "attn2.add_k_proj",
    "cross_attn.v_img": "attn2.add_v_proj",
    "cross_attn.norm_q": "attn2.norm_q",
    "cross_attn.norm_k": "attn2.norm_k",
    "cross_attn.norm_k_img": "attn2.norm_added_k",
    "norm3": "norm2",
    "norm_x": "norm_audio",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
    "audio_cross_attn.q_linear": "audio_attn.to_q",
    "audio_cross_attn.kv_linear": "audio_attn.to_kv",
    "audio_cross_attn.proj": "audio_attn.to_out",
}
# Tensors that are not a weight or bias of a module.
_TENSORS = {"head.modulation": "scale_shift_table"}
_BLOCK_TENSORS = {"modulation": "scale_shift_table"}

# Arguments of the reference's constructor (its config.json has the first few) -> ours with the same meaning.
_CONFIG = {
    "patch_size": "patch_size",
    "num_heads": "num_attention_heads",
    "in_dim": "in_channels",
    "out_dim": "out_channels",
    "text_dim": "text_dim",
    "freq_dim": "freq_dim",
    "ffn_dim": "ffn_dim",
    "num_layers": "num_layers",
    "cross_attn_norm": "cross_attn_norm",
    "eps": "eps",
    "text_len": "text_len",
    "clip_dim": "image_dim",
    "audio_window": "audio_window",
    "audio_blocks": "audio_layers",
    "audio_channels": "audio_channels",
    "intermediate_dim": "audio_intermediate_dim",
    "output_dim": "audio_output_dim",
    "context_tokens": "audio_tokens",
    "vae_scale": "vae_scale_temporal",
    "class_range": "class_range",
    "class_interval": "class_interval",
}

#: Prefixes of tensor names in files of ComfyUI, of data parallel training, and of trainers that keep the network under
#: their own name.
TOOL_PREFIXES = (
    "model.diffusion_model.",
    "diffusion_model.",
    "module.",
    "transformer.",
    "pipe.dit.",
    "dit.",
    "model.",
    "net.",
    "generator.",
    "unet.",
    "base_model.model.",
    "ema.",
)
#: What torch inserts where it wraps a module: compiled, checkpointed or sharded.
WRAPPED = re.compile(r"(?:(?<=\.)|^)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_NAME = re.compile(r"^(?P<block>blocks\.\d+\.)?(?P<rest>.+)$")
_LEAF = re.compile(r"^(?P<module>.+)\.(?P<leaf>weight|bias)$")
_AUDIO = re.compile(r"^audio_proj\.|^blocks\.\d+\.(audio_attn|norm_audio)\.")

# Modules and tensors outside the blocks, modules and tensors of a block.
_TO_ENGINE = (_ROOT, _TENSORS, _BLOCK, _BLOCK_TENSORS)
_TO_REFERENCE = tuple({ours: theirs for theirs, ours in names.items()} for names in _TO_ENGINE)


def to_engine(key: str) -> str:
    """Return our name of the reference's tensor `key`. Raises SourceError for a name the reference does not have."""
    return _translate(key, _TO_ENGINE, kind="reference")


def to_reference(key: str) -> str:
    """Return the reference's name of our tensor `key`. Raises SourceError for a name our network does not have."""
    return _translate(key, _TO_REFERENCE, kind="engine")


def engine_name(key: str) -> str | None:
    """Return our name for a tensor, given the reference's name or ours; None if the name is unknown.

    Prefixes that tools add are removed.
    """
    key = WRAPPED.sub("", key)
    name = _engine_name(key)
    while name is None:
        prefix = next((prefix for prefix in TOOL_PREFIXES if key.startswith(prefix)), None)
        if prefix is None:
            return None
        key = key[len(prefix) :]
        name = _engine_name(key)
    return name


def _engine_name(key: str) -> str | None:
    try:
        return to_engine(key)
    except SourceError:
        pass
    try:
        to_reference(key)
    except SourceError:
        return None
    return key


def is_audio(key: str) -> bool:
    """Return whether `key`, the reference's name or ours, is a tensor that MultiTalk adds to Wan's network."""
    return bool(_AUDIO.match(engine_name(key) or ""))


def flat_modules(block: bool) -> dict[str, str]:
    """Return module names (the reference's and ours, of a block or outside) by their form with underscores for dots."""
    names = _BLOCK if block else _ROOT
    return {name.replace(".", "_"): name for name in (*names.values(), *names)}


def to_engine_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return our constructor's arguments for a reference config; missing entries keep our defaults.

    Entries that are not sizes (`model_type`, `_class_name`, ...) are ignored. Raises SourceError if `dim` is not
    divisible by `num_heads`.
    """
    ours = {_CONFIG[name]: value for name, value in config.items() if name in _CONFIG}
    if "dim" in config:
        dim, heads = int(config["dim"]), int(config.get("num_heads", 40))
        if dim % heads:
            raise SourceError(f"a width of {dim} is not divisible by {heads} heads", field="config.dim")
        ours["attention_head_dim"] = dim // heads
    return ours


def _translate(key: str, names: tuple[dict[str, str], ...], *, kind: str) -> str:
    match = _NAME.match(key)
    prefix, rest = (match["block"] or "", match["rest"]) if match else ("", key)
    modules, singles = names[2:] if prefix else names[:2]
    if rest in singles:
        return prefix + singles[rest]
    leaf = _LEAF.match(rest)
    if leaf and leaf["module"] in modules:
        return f"{prefix}{modules[leaf['module']]}.{leaf['leaf']}"
    raise SourceError(f"no tensor of the {kind} network is named {key!r}", field="key")
