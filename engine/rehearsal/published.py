"""Names and shapes of the tensors of the published checkpoints, at full size unless smaller sizes are given.

Wan's and MultiTalk's own names, from the public implementations' constructors; wav2vec2 as transformers names it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Shapes = dict[str, tuple[int, ...]]


def linears(modules: Mapping[str, tuple[int, int]]) -> Shapes:
    return {
        f"{module}.{leaf}": shape if leaf == "weight" else shape[:1]
        for module, shape in modules.items()
        for leaf in ("weight", "bias")
    }


def norms(sizes: Mapping[str, int]) -> Shapes:
    return {f"{name}.{leaf}": (size,) for name, size in sizes.items() for leaf in ("weight", "bias")}


def in_blocks(shapes: Mapping[str, tuple[int, ...]], count: int, prefix: str = "blocks.") -> Shapes:
    return {f"{prefix}{index}.{name}": shape for index in range(count) for name, shape in shapes.items()}


def wan(
    dim: int = 5120, ffn: int = 13824, layers: int = 40, text: int = 4096, clip: int = 1280, freq: int = 256
) -> Shapes:
    """Return Wan2.1-I2V-14B's transformer: the seven shards."""
    attention = {f"self_attn.{name}": (dim, dim) for name in "qkvo"}
    attention |= {f"cross_attn.{name}": (dim, dim) for name in ("q", "k", "v", "o", "k_img", "v_img")}
    gains = [f"self_attn.norm_{x}" for x in "qk"] + [f"cross_attn.norm_{x}" for x in ("q", "k", "k_img")]
    block = linears(attention | {"ffn.0": (ffn, dim), "ffn.2": (dim, ffn)}) | norms({"norm3": dim})
    block |= {f"{name}.weight": (dim,) for name in gains} | {"modulation": (1, 6, dim)}
    root = {
        "text_embedding.0": (dim, text),
        "text_embedding.2": (dim, dim),
        "time_embedding.0": (dim, freq),
        "time_embedding.2": (dim, dim),
        "time_projection.1": (6 * dim, dim),
        "img_emb.proj.1": (clip, clip),
        "img_emb.proj.3": (dim, clip),
        "head.head": (64, dim),
    }
    patches: Shapes = {"patch_embedding.weight": (dim, 36, 1, 2, 2), "patch_embedding.bias": (dim,)}
    patches["head.modulation"] = (1, 2, dim)
    return patches | linears(root) | norms({"img_emb.proj.0": clip, "img_emb.proj.4": dim}) | in_blocks(block, layers)


def multitalk(
    dim: int = 5120, layers: int = 40, features: int = 12 * 768, hidden: int = 512, out: int = 768, tokens: int = 32
) -> Shapes:
    """Return multitalk.safetensors and infinitetalk.safetensors."""
    root = {
        "audio_proj.proj1": (hidden, 5 * features),
        "audio_proj.proj1_vf": (hidden, 8 * features),
        "audio_proj.proj2": (hidden, hidden),
        "audio_proj.proj3": (tokens * out, hidden),
    }
    block = {
        "audio_cross_attn.q_linear": (dim, dim),
        "audio_cross_attn.kv_linear": (2 * dim, out),
        "audio_cross_attn.proj": (dim, dim),
    }
    audio = linears(block) | norms({"norm_x": dim})
    return linears(root) | norms({"audio_proj.norm": out}) | in_blocks(audio, layers)


def umt5(
    vocabulary: int = 256384,
    dim: int = 4096,
    ffn: int = 10240,
    heads: int = 64,
    layers: int = 24,
    width: int | None = None,
) -> Shapes:
    """Return models_t5_umt5-xxl-enc-bf16.pth; every layer has its own table of relative positions.

    `width` is the width of a head; None: all heads together are as wide as the network, as in the published model.
    """
    width = dim // heads if width is None else width
    block: Shapes = {"norm1.weight": (dim,), "norm2.weight": (dim,), "pos_embedding.embedding.weight": (32, heads)}
    block |= {f"attn.{name}.weight": (heads * width, dim) for name in "qkv"} | {"attn.o.weight": (dim, heads * width)}
    block |= {"ffn.gate.0.weight": (ffn, dim), "ffn.fc1.weight": (ffn, dim), "ffn.fc2.weight": (dim, ffn)}
    return {"token_embedding.weight": (vocabulary, dim), "norm.weight": (dim,)} | in_blocks(block, layers)


def clip(dim: int = 1280, layers: int = 32, patch: int = 14, tokens: int = 257, out: int = 1024) -> Shapes:
    """Return the vision tower of models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth."""
    block = linears(
        {"attn.to_qkv": (3 * dim, dim), "attn.proj": (dim, dim), "mlp.0": (4 * dim, dim), "mlp.2": (dim, 4 * dim)}
    )
    root: Shapes = {
        "visual.patch_embedding.weight": (dim, 3, patch, patch),
        "visual.cls_embedding": (1, 1, dim),
        "visual.pos_embedding": (1, tokens, dim),
        "visual.head": (dim, out),
    }
    root |= norms({"visual.pre_norm": dim, "visual.post_norm": dim})
    return root | in_blocks(block | norms({"norm1": dim, "norm2": dim}), layers, "visual.transformer.")


def vae(dim: int = 96, z: int = 16) -> Shapes:
    """Return Wan2.1_VAE.pth: widths 1, 2, 4, 4 times `dim`, two residual blocks a level, three in the decoder."""
    top = 4 * dim
    shapes: Shapes = {}

    def conv(name: str, out: int, inputs: int, *kernel: int) -> None:
        shapes[f"{name}.weight"] = (out, inputs, *kernel)
        shapes[f"{name}.bias"] = (out,)

    def residual(name: str, inputs: int, out: int) -> None:
        shapes[f"{name}.residual.0.gamma"] = (inputs, 1, 1, 1)
        conv(f"{name}.residual.2", out, inputs, 3, 3, 3)
        shapes[f"{name}.residual.3.gamma"] = (out, 1, 1, 1)
        conv(f"{name}.residual.6", out, out, 3, 3, 3)
        if inputs != out:
            conv(f"{name}.shortcut", out, inputs, 1, 1, 1)

    def ends(name: str, inputs: int, first: int, last: int, out: int) -> None:
        conv(f"{name}.conv1", first, inputs, 3, 3, 3)
        residual(f"{name}.middle.0", top, top)
        shapes[f"{name}.middle.1.norm.gamma"] = (top, 1, 1)
        conv(f"{name}.middle.1.to_qkv", 3 * top, top, 1, 1)
        conv(f"{name}.middle.1.proj", top, top, 1, 1)
        residual(f"{name}.middle.2", top, top)
        shapes[f"{name}.head.0.gamma"] = (last, 1, 1, 1)
        conv(f"{name}.head.2", out, last, 3, 3, 3)

    ends("encoder", 3, dim, top, 2 * z)
    ends("decoder", z, top, dim, 3)
    for index, inputs, out in ((0, 1, 1), (1, 1, 1), (3, 1, 2), (4, 2, 2), (6, 2, 4), (7, 4, 4), (9, 4, 4), (10, 4, 4)):
        residual(f"encoder.downsamples.{index}", inputs * dim, out * dim)
    for index, times in ((2, 1), (5, 2), (8, 4)):
        conv(f"encoder.downsamples.{index}.resample.1", times * dim, times * dim, 3, 3)
    for index, times in ((5, 2), (8, 4)):
        conv(f"encoder.downsamples.{index}.time_conv", times * dim, times * dim, 3, 1, 1)
    for start, inputs, out in ((0, 4, 4), (4, 2, 4), (8, 2, 2), (12, 1, 1)):
        for index in range(3):
            residual(f"decoder.upsamples.{start + index}", (out if index else inputs) * dim, out * dim)
    for index, times in ((3, 4), (7, 4), (11, 2)):
        conv(f"decoder.upsamples.{index}.resample.1", times * dim // 2, times * dim, 3, 3)
    for index, times in ((3, 4), (7, 4)):
        conv(f"decoder.upsamples.{index}.time_conv", 2 * times * dim, times * dim, 3, 1, 1)
    conv("conv1", 2 * z, 2 * z, 1, 1, 1)
    conv("conv2", z, z, 1, 1, 1)
    return shapes


def wav2vec2(
    dim: int = 768, ffn: int = 3072, layers: int = 12, convolutions: Sequence[int] = (10, 3, 3, 3, 3, 2, 2)
) -> Shapes:
    """Return chinese-wav2vec2-base's encoder, in the names of checkpoints before torch's parametrisations."""
    attention = {f"attention.{name}_proj": (dim, dim) for name in ("k", "v", "q", "out")}
    block = linears(
        attention | {"feed_forward.intermediate_dense": (ffn, dim), "feed_forward.output_dense": (dim, ffn)}
    )
    block |= norms({"layer_norm": dim, "final_layer_norm": dim})
    shapes: Shapes = {
        f"feature_extractor.conv_layers.{index}.conv.weight": (512, 512 if index else 1, kernel)
        for index, kernel in enumerate(convolutions)
    }
    shapes |= norms({"feature_extractor.conv_layers.0.layer_norm": 512, "feature_projection.layer_norm": 512})
    shapes |= linears({"feature_projection.projection": (dim, 512)}) | norms({"encoder.layer_norm": dim})
    shapes |= {
        "masked_spec_embed": (dim,),
        "encoder.pos_conv_embed.conv.bias": (dim,),
        "encoder.pos_conv_embed.conv.weight_g": (1, 1, 128),
        "encoder.pos_conv_embed.conv.weight_v": (dim, dim // 16, 128),
    }
    return shapes | in_blocks(block, layers, "encoder.layers.")
