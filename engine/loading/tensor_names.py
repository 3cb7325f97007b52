"""Names and dtypes of the tensors of one file -> which component it is, or which format it is in that is not read.

The names are those that tools write around one and the same network: those of a wrapper (`_orig_mod.`, `module.`), of
ComfyUI (`model.diffusion_model.`, `scaled_fp8`), and of components in Wan's own or in transformers' words.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping

from engine.loading.key_map import TOOL_PREFIXES, WRAPPED, engine_name, is_audio

#: Before all tensors of an encoder or autoencoder, as tools write them.
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
#: Tensors that are no weights: marks, and a tokenizer that ComfyUI keeps beside the encoder.
_MARKS = re.compile(r"^(scaled_fp8|spiece_model|tekken_model)$|\.(scaled_fp8|comfy_quant|input_scale|scale_input)$")
#: How a scale of `X.weight` is called: by ComfyUI and Kijai; by ComfyUI now and lightx2v; where it is stored inverted.
SCALES = (".scale_weight", ".weight_scale", ".weight_scale_inv")

_LORA = re.compile(
    r"^lora_unet_|^lycoris_|\.lora_(A|B|up|down|mid)(\.|$)|\.lora\.(up|down)\.|\.(diff|diff_b|diff_m)$"
    r"|\.(hada_w|lokr_w)|\.dora_scale$"
)
_DENSE = (
    "take it in 16 bits, in float8 (plain or with scales), as GGUF (quant=gguf) or as quanto's int8 (quant=int8-quanto)"
)
#: Ends of names -> what wrote them.
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


def bare(names: Collection[str]) -> dict[str, str]:
    """Return the tensors that are weights or scales of weights, by their names, with what tools wrote before them cut.

    Only what stands before all of them is cut.
    """
    kept = {name: WRAPPED.sub("", name) for name in names if not _MARKS.search(name)}
    while kept:
        prefix = next((one for one in _PREFIXES if all(name.startswith(one) for name in kept.values())), None)
        if prefix is None:
            break
        kept = {name: short[len(prefix) :] for name, short in kept.items()}
    if "shared.weight" in kept.values():
        # The same table under its second name.
        kept = {name: short for name, short in kept.items() if short != "encoder.embed_tokens.weight"}
    return {name: "shared.weight" if short == "encoder.embed_tokens.weight" else short for name, short in kept.items()}


def scale_of(weight: str, names: Collection[str]) -> str | None:
    """Return which of `names` holds the scale of the tensor `weight`, None where it has none."""
    module = weight.removesuffix(".weight")
    if module == weight:
        return None
    return next((module + end for end in SCALES if module + end in names), None)


def has_scales(names: Collection[str]) -> bool:
    """Say whether some of the weights have scales beside them, as fp8_scaled files do."""
    return any(scale_of(name, names) for name in names)


def is_lora(names: Collection[str]) -> bool:
    """Say whether a file of such tensors is a LoRA."""
    return any(_LORA.search(name) for name in names)


def kind_of(tensors: Mapping[str, str]) -> str:
    """Return the component that a file holds, or "audio" for MultiTalk's weights alone; "" for none that is read.

    `tensors` are dtypes, as safetensors calls them, by name.
    """
    return "" if not tensors or refusal(tensors) else _kind(set(bare(tensors).values()))


def _kind(names: set[str]) -> str:
    # One mark is enough: whoever builds the component says what else a file lacks.
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
    """Return what a file is that is not read, and what to take in its place; "" where nothing is known against it."""
    return next(_refusals(tensors), "")


def _refusals(tensors: Mapping[str, str]) -> Iterator[str]:
    for pattern, what in _QUANTISED:
        if any(map(pattern.search, tensors)):
            yield f"{what}: {_DENSE}"
    if is_lora(tensors):
        yield "a LoRA, no weights: name it with lora.extra, and put the weights beside it"
    for name, dtype in tensors.items():
        if name.endswith(SCALES) and dtype not in ("F32", "F16", "BF16", "F64"):
            yield f"quantised with scales of {dtype} (mxfp8 or the like): {_DENSE}"
    names = set(bare(tensors).values())
    if _T5 in names and _SECOND_BIAS not in names and any(name.startswith("encoder.block.1.") for name in names):
        yield "a T5 encoder, not umT5: take umt5-xxl (models_t5_umt5-xxl-enc-bf16, or ComfyUI's umt5_xxl)"
    if _T5 in names and any(name.startswith("decoder.block.0.") for name in names):
        yield "a whole T5 with its decoder: take the encoder alone (models_t5_umt5-xxl-enc-bf16)"
    if {"encoder.conv_in.weight", "post_quant_conv.weight"} <= names and not any(
        name.endswith("norm1.gamma") for name in names
    ):
        yield "an autoencoder of another model: take Wan2.1_VAE"
    if any(".model.diffusion_model." in f".{name}" for name in tensors) and any(
        name.startswith(("first_stage_model.", "vae.", "cond_stage_model.", "text_encoders.")) for name in tensors
    ):
        yield "a whole model in one file: take the files of its parts (transformer, umT5, CLIP, VAE)"
    if any(".vace_blocks." in f".{name}" or "vace_patch_embedding" in name for name in tensors):
        yield "a VACE model: take Wan2.1-I2V-14B"
    if any("double_blocks." in name or "transformer_blocks." in name for name in tensors):
        yield "a model of another family: take Wan2.1-I2V-14B"


def foreign(tensors: Mapping[str, str]) -> str:
    """Return the refusal of a file; of one of an unknown kind that none of its names is known."""
    told = refusal(tensors)
    if told or kind_of(tensors) or any(name.endswith("._data") for name in tensors):
        return told
    first = next(iter(sorted(tensors)), "")
    return f"of no known kind (its tensors are called {first[:60]!r} and so on)" if first else "without any tensor"
