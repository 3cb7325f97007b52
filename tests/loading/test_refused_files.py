"""What is no file of weights, or in a format that is not read, is told by what it is."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from original_folder import FILES, random_state
from safetensors.torch import load_file
from small_weights import WAN, WANTED, WEIGHTS, put
from torch import Tensor

from engine.errors import SourceError
from engine.loading.file_kinds import what_is
from engine.loading.layout import describe_unread
from engine.loading.tensor_names import refusal
from plugins.families.multitalk.model import load_multitalk
from plugins.sources.volume import Volume, VolumeConfig

# --- what is not read -------------------------------------------------------------------------------------------------

NOT_WEIGHTS = {
    "a git-lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "git lfs pull"),
    "a web page": (b"<!DOCTYPE html><html><head><title>Sign in</title>", "token"),
    "a web page in lower case": (b"\n  <html>\n<body>login</body>", "token"),
    "a zip archive": (b"PK\x03\x04\x14\0\0\0\0\0" + bytes(20) + b"models/wan.txt", "unpack"),
    "a PyTorch archive": (b"PK\x03\x04" + bytes(26) + b"archive/data.pkl" + bytes(9), "safetensors"),
    "an old pickle": (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "safetensors"),
    "a GGUF file": (b"GGUF\x03\0\0\0" + bytes(100), "quant=gguf"),
    "a gzip archive": (b"\x1f\x8b\x08" + bytes(100), "unpack"),
    "zeros": (bytes(4096), "again"),
    "a server's error": (b'{"error":"Invalid username or password."}', "token"),
    "a word of the hub": (b"Entry not found", "name"),
}


@pytest.mark.parametrize(("content", "hint"), NOT_WEIGHTS.values(), ids=NOT_WEIGHTS.keys())
@pytest.mark.parametrize("name", ["x.safetensors", f"{WAN}/{FILES['vae']}", "text_encoder/model.safetensors"])
def test_what_is_no_file_of_weights_is_told_by_what_it_is(
    whole: Path, tmp_path: Path, name: str, content: bytes, hint: str
) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "multitalk"))
    if name.startswith("text_encoder"):
        (folder / WAN / FILES["text_encoder"]).unlink()
        (folder / "text_encoder").mkdir()
        (folder / "text_encoder" / "config.json").write_text('{"d_model": 16, "vocab_size": 20, "num_layers": 1}')
    (folder / name).write_bytes(content)
    if name.endswith(".pth") and b"data.pkl" in content + b"data.pkl" * (content[:2] == b"\x80\x02"):
        # Of the right kind, and damaged.
        expected, hint = "cannot be read", "get this file again"
    else:
        result = what_is(folder / name)
        assert result is not None
        expected = result[0].partition(" (")[0]
    with pytest.raises(SourceError) as caught:
        load_multitalk(folder, device="cpu", dtype="float32", wanted=WANTED)
    assert expected in caught.value.what
    assert hint in caught.value.hint
    assert "header too large" not in str(caught.value)
    assert "\n" not in str(caught.value)


ZERO = torch.zeros(4, 4)
OTHERS: dict[str, tuple[dict[str, Tensor], str]] = {
    "a LoRA": (
        {
            "diffusion_model.blocks.0.self_attn.q.lora_down.weight": ZERO,
            "diffusion_model.blocks.0.self_attn.q.lora_up.weight": ZERO,
        },
        "a LoRA",
    ),
    "a LoRA with whole tensors": (
        {"blocks.0.self_attn.q.lora_A.weight": ZERO, "patch_embedding.weight": ZERO},
        "a LoRA",
    ),
    "kohya's LoRA": ({"lora_unet_blocks_0_ffn_0.lora_down.weight": ZERO}, "a LoRA"),
    "bitsandbytes nf4": (
        {
            "blocks.0.ffn.0.weight": ZERO,
            "blocks.0.ffn.0.weight.quant_state.bitsandbytes__nf4": ZERO,
            "blocks.0.ffn.0.weight.absmax": ZERO,
        },
        "nf4",
    ),
    "bitsandbytes int8": ({"blocks.0.ffn.0.weight": ZERO, "blocks.0.ffn.0.SCB": ZERO}, "bitsandbytes"),
    "nunchaku": (
        {"blocks.0.ffn.0.qweight": ZERO, "blocks.0.ffn.0.wscales": ZERO, "blocks.0.ffn.0.lora_down": ZERO},
        "nunchaku",
    ),
    "AWQ": ({"blocks.0.ffn.0.qweight": ZERO, "blocks.0.ffn.0.qzeros": ZERO}, "GPTQ or AWQ"),
    "nvfp4": (
        {"blocks.0.ffn.0.weight": ZERO, "blocks.0.ffn.0.weight_scale": ZERO, "blocks.0.ffn.0.weight_scale_2": ZERO},
        "nvfp4",
    ),
    "mxfp8": ({"blocks.0.ffn.0.weight": ZERO, "blocks.0.ffn.0.weight_scale": ZERO.to(torch.uint8)}, "mxfp8"),
    "T5": (
        {
            "shared.weight": ZERO,
            "encoder.block.0.layer.0.SelfAttention.q.weight": ZERO,
            "encoder.block.1.layer.0.SelfAttention.q.weight": ZERO,
        },
        "not umT5",
    ),
    "SD's autoencoder": (
        {"encoder.conv_in.weight": ZERO, "post_quant_conv.weight": ZERO, "encoder.mid.norm1.weight": ZERO},
        "autoencoder of another model",
    ),
    "VACE": ({"vace_blocks.0.self_attn.q.weight": ZERO, "blocks.0.self_attn.q.weight": ZERO}, "VACE"),
    "Flux": ({"double_blocks.0.img_attn.qkv.weight": ZERO}, "another family"),
    "all in one": (
        {"model.diffusion_model.blocks.0.self_attn.q.weight": ZERO, "vae.conv2.weight": ZERO},
        "a whole model in one file",
    ),
    "anything": ({"what.is.this": ZERO}, "'what.is.this'"),
}


@pytest.mark.parametrize(("state", "told"), OTHERS.values(), ids=OTHERS.keys())
def test_a_file_in_a_format_that_is_not_read_is_named_with_what_to_take(
    folder: Path, state: dict[str, Tensor], told: str
) -> None:
    put(folder, state)
    with pytest.raises(SourceError, match=r"there and not read: diffusion_models/wan\.safetensors is ") as caught:
        Volume(VolumeConfig(path=str(folder.parent))).locate(WANTED)
    assert told in caught.value.what
    with pytest.raises(SourceError, match=r"diffusion_models/wan\.safetensors is "):
        load_multitalk(folder, device="cpu", dtype="float32", wanted=WANTED)


def test_other_files_are_described_where_something_is_missing(folder: Path) -> None:
    hearing = folder / "chinese-wav2vec2-base"
    (hearing / "model.safetensors").rename(folder / "wav2vec2.safetensors")
    torch.save({"model": {}}, hearing / "chinese-wav2vec2-base-fairseq-ckpt.pt")
    torch.save({"a": ZERO}, folder / "wan2.1.ckpt")
    (folder / "weights.zip").write_bytes(b"PK\x03\x04" + bytes(60))
    told = "\n".join(describe_unread(folder, WANTED))
    assert "fairseq-ckpt.pt is fairseq's checkpoint of wav2vec2: use model.safetensors" in told
    assert "wav2vec2.safetensors is a wav2vec2 without its config.json" in told
    assert "wan2.1.ckpt is a PyTorch file whose name is not supported" in told
    assert "weights.zip is a zip archive: unpack it" in told
    assert FILES["vae"] not in told
    assert "multitalk.safetensors" not in told


def test_a_text_to_video_model_is_told(folder: Path) -> None:
    put(folder, {name: tensor for name, tensor in WEIGHTS.items() if "img" not in name})
    with pytest.raises(SourceError, match="is a text-to-video model"):
        load_multitalk(folder, device="cpu", dtype="float32", wanted=WANTED)


def test_files_that_are_read_are_refused_by_nothing(whole: Path) -> None:
    for path in whole.rglob("*.safetensors"):
        assert refusal(dict.fromkeys(load_file(path), "F32")) == ""
    assert refusal(dict.fromkeys(random_state({"blocks.0.norm_x.weight": (4,)}), "F32")) == ""
