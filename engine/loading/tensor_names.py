"""Names and dtypes of the tensors of one file -> which component it is, or which unsupported format it has.

Tools name the tensors of the same network differently: with the prefix of a wrapper (`_orig_mod.`, `module.`) or of
ComfyUI (`model.diffusion_model.`, `scaled_fp8`), and with Wan's own names or those of transformers.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping

from engine.loading.key_map import TOOL_PREFIXES, WRAPPED, engine_name, is_audio

#: Prefixes that tools add to all tensors of an encoder or autoencoder.
_PREFIXES = (
    *TOOL_PREFIXES,
    "first_stage_model.",
    "vae.",
    "text_encoder.",
    "text_encoders.umt5xxl.transformer.",
    "umt5xxl.transformer.",
    "image_encoder.",
    "clip_vision.",
)
#: Tensors that are not weights: flags, and a tokenizer that ComfyUI stores with the encoder.
_MARKS = re.compile(r"^(scaled_fp8|spiece_model|tekken_model)$|\.(scaled_fp8|comfy_quant|input_scale|scale_input)$")
#: Suffixes of the scale of `X.weight`: ComfyUI and Kijai; newer ComfyUI and lightx2v; stored as inverse.
SCALES = (".scale_weight", ".weight_scale", ".weight_scale_inv")

_LORA = re.compile(
    r"^lora_unet_|^lycoris_|\.lora_(A|B|up|down|mid)(\.|$)|\.lora\.(up|down)\.|\.(diff|diff_b|diff_m)$"
    r"|\.(hada_w|lokr_w)|\.dora_scale$"
)
_DENSE = (
    "use it in 16 bits, in float8 (plain or with scales), as GGUF (quant=gguf) or as quanto's int8 (quant=int8-quanto)"
)
#: Endings of names -> the tool that wrote them.
_QUANTISED: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"\.(quant_state\.bitsandbytes__nf4|bitsandbytes__nf4)"), "quantised by bitsandbytes (nf4)"),
    (
        re.compile(r"\.(quant_state\.bitsandbytes__fp4|absmax|quant_map|nested_absmax)$"),
        "quantised by bitsandbytes (4 bits)",
    ),
    (re.compile(r"\.SCB$"), "quantised by bitsandbytes (int8)"),
    (re.compile(r"\.(wscales|smooth_factor|smooth_factor_orig)$"), "quantised by nunchaku (SVDQuant)"),
    (re.compile(r"\.(qweight|qzeros)$"), "quantised by GPTQ or AWQ"),
    (re.compile(r"\.weight_packed$"), "quantised by compressed-tensors"),
    (re.compile(r"\.(W_q)$"), "quantised by HQQ"),
    (re.compile(r"\.(weight_scale_2|weight_global_scale)$"), "quantised as nvfp4"),
)


def strip_prefixes(names: Collection[str]) -> dict[str, str]:
    """Return the tensors that are weights or scales: their full names -> their names without the prefixes of tools.

    A prefix is removed only if all names have it.
    """
    names_left = {name: WRAPPED.sub("", name) for name in names if not _MARKS.search(name)}
    while names_left:
        prefix = next((one for one in _PREFIXES if all(name.startswith(one) for name in names_left.values())), None)
        if prefix is None:
            break
        names_left = {name: short[len(prefix) :] for name, short in names_left.items()}
    if "shared.weight" in names_left.values():
        # The same table with its second name.
        names_left = {name: short for name, short in names_left.items() if short != "encoder.embed_tokens.weight"}
    return {
        name: "shared.weight" if short == "encoder.embed_tokens.weight" else short for name, short in names_left.items()
    }


def scale_of(weight: str, names: Collection[str]) -> str | None:
    """Return the one of `names` that is the scale of the tensor `weight`; None if it has none."""
    module = weight.removesuffix(".weight")
    if module == weight:
        return None
    return next((module + end for end in SCALES if module + end in names), None)


def has_scales(names: Collection[str]) -> bool:
    """Return whether some weights have separate scales, as in fp8_scaled files."""
    return any(scale_of(name, names) for name in names)


def is_lora(names: Collection[str]) -> bool:
    """Return whether tensors with these names are a LoRA."""
    return any(_LORA.search(name) for name in names)


def kind_of(tensors: Mapping[str, str]) -> str:
    """Return the component that a file holds, "audio" for MultiTalk's audio weights alone, "" for an unsupported file.

    `tensors` are safetensors dtypes by tensor name.
    """
    return "" if not tensors or refusal(tensors) else _kind(set(strip_prefixes(tensors).values()))


def _kind(names: set[str]) -> str:
    # One typical tensor is enough: building the component reports what else is missing.
    if not names.isdisjoint(("token_embedding.weight", "shared.weight", _T5)):
        return "text_encoder"
    if any(name.startswith(("visual.", "vision_model.", "visual_projection.")) for name in names) or _CLIP in names:
        return "image_encoder"
    if {"encoder.conv1.weight", "conv2.weight"} <= names or {
        "encoder.conv_in.weight",
        "post_quant_conv.weight",
    } <= names:
        return "vae"
    if any(name.endswith("feature_extractor.conv_layers.0.conv.weight") for name in names):
        return "audio_encoder"
    if not any(map(engine_name, names)):
        return ""
    weights = {name for name in names if not name.endswith(SCALES)}
    return "audio" if all(map(is_audio, weights)) else "transformer"


_T5 = "encoder.block.0.layer.0.SelfAttention.q.weight"
_SECOND_BIAS = "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight"
_CLIP = "embeddings.class_embedding"


def refusal(tensors: Mapping[str, str]) -> str:
    """Return why a file is not supported, and what to use instead; "" if no problem is known."""
    return next(_refusals(tensors), "")


def _refusals(tensors: Mapping[str, str]) -> Iterator[str]:
    for pattern, what in _QUANTISED:
        if any(map(pattern.search, tensors)):
            yield f"{what}: {_DENSE}"
    if is_lora(tensors):
        yield "a LoRA, no weights: name it with lora.extra, and add the weights"
    for name, dtype in tensors.items():
        if name.endswith(SCALES) and dtype not in ("F32", "F16", "BF16", "F64"):
            yield f"quantised with scales of {dtype} (mxfp8 or the like): {_DENSE}"
    names = set(strip_prefixes(tensors).values())
    if _T5 in names and _SECOND_BIAS not in names and any(name.startswith("encoder.block.1.") for name in names):
        yield "a T5 encoder, not umT5: use umt5-xxl (models_t5_umt5-xxl-enc-bf16, or ComfyUI's umt5_xxl)"
    if _T5 in names and any(name.startswith("decoder.block.0.") for name in names):
        yield "a whole T5 with its decoder: use the encoder alone (models_t5_umt5-xxl-enc-bf16)"
    if {"encoder.conv_in.weight", "post_quant_conv.weight"} <= names and not any(
        name.endswith("norm1.gamma") for name in names
    ):
        yield "an autoencoder of another model: use Wan2.1_VAE"
    if any(".model.diffusion_model." in f".{name}" for name in tensors) and any(
        name.startswith(("first_stage_model.", "vae.", "cond_stage_model.", "text_encoders.")) for name in tensors
    ):
        yield "a whole model in one file: use the files of its parts (transformer, umT5, CLIP, VAE)"
    if any(".vace_blocks." in f".{name}" or "vace_patch_embedding" in name for name in tensors):
        yield "a VACE model: use Wan2.1-I2V-14B"
    if any("double_blocks." in name or "transformer_blocks." in name for name in tensors):
        yield "a model of another family: use Wan2.1-I2V-14B"


def describe_foreign(tensors: Mapping[str, str]) -> str:
    """Return why a file is not supported; for an unknown file, that its names are unknown."""
    reason = refusal(tensors)
    if reason or kind_of(tensors) or any(name.endswith("._data") for name in tensors):
        return reason
    first = next(iter(sorted(tensors)), "")
    return f"of an unknown kind (its tensors have names like {first[:60]!r})" if first else "without any tensor"
