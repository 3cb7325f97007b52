"""Put the trained parts into one folder of the engine's layout.

    python -m scripts.train_tiny.assemble OUT/tiny --run RUN --data LATENTS [--vae RUN/vae] [--loras RUN/loras]
    multitalk generate model=tiny source=volume source.path=OUT ...

Transformer, tokenizer, text and image encoder come from the transformer's training; audio encoder and autoencoder are
those with which its latents were encoded, unless a decoder that was trained further is given. Everything is float16, in
files of at most 8 MB; the engine loads the folder as a check at the end.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch

#: Bytes of the tensors of one file: 8 MiB less room for its header.
LARGEST = 8 * 2**20 - 2**15


def assemble(out: Path, *, run: Path, data: Path, vae: Path | None = None, loras: Path | None = None) -> int:
    """Write a new `out` and return the size of its files in bytes.

    `run` holds {transformer,text_encoder,image_encoder,tokenizer}, `data` {vae,audio_encoder}; `loras` is a folder of
    safetensors files. Raises ValueError for an autoencoder whose encoder has other weights than the one the
    training saw, and SourceError for parts that do not fit each other.
    """
    from diffusers import AutoencoderKLWan
    from transformers import (
        AutoTokenizer,
        CLIPVisionModel,
        UMT5EncoderModel,
        Wav2Vec2FeatureExtractor,
        Wav2Vec2Model,
    )

    from plugins.families.multitalk.model import load_multitalk
    from plugins.families.multitalk.transformer import MultiTalkTransformer3DModel

    codec = AutoencoderKLWan.from_pretrained(data / "vae")
    parts: dict[str, Any] = {
        "transformer": MultiTalkTransformer3DModel.from_pretrained(run / "transformer"),
        "vae": codec if vae is None else _with_its_statistics(AutoencoderKLWan.from_pretrained(vae), codec),
        "text_encoder": UMT5EncoderModel.from_pretrained(run / "text_encoder"),
        "image_encoder": CLIPVisionModel.from_pretrained(run / "image_encoder"),
        "audio_encoder": Wav2Vec2Model.from_pretrained(data / "audio_encoder"),
    }
    if out.exists():
        # An old file (one more shard) would otherwise be shipped, too.
        if not (out / "model_index.json").is_file():
            raise ValueError(f"{out} is there and is not a model; choose another folder")
        shutil.rmtree(out)
    out.mkdir(parents=True)
    for name, part in parts.items():
        part.half().save_pretrained(out / name, max_shard_size=LARGEST)
        _forget_origin(out / name / "config.json")
    AutoTokenizer.from_pretrained(run / "tokenizer", local_files_only=True, trust_remote_code=False).save_pretrained(
        out / "tokenizer"
    )
    reader = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=False)  # type: ignore[no-untyped-call]
    reader.save_pretrained(out / "audio_encoder")
    if loras is not None:
        (out / "loras").mkdir()
        for file in sorted(loras.glob("*.safetensors")):
            shutil.copy(file, out / "loras" / file.name)
    _write_index(out / "model_index.json", {name: type(part).__name__ for name, part in parts.items()})
    for path in out.rglob("*.*"):
        # safetensors makes files readable only by their owner; these become part of a package.
        path.chmod(0o644)
    load_multitalk(out, device="cpu", dtype="float32").close()
    return sum(path.stat().st_size for path in out.rglob("*") if path.is_file())


def _with_its_statistics(vae: Any, trained_with: Any) -> Any:
    """Return `given` with the statistics by which the training normalised: a new measurement differs in digits."""
    old = trained_with.state_dict()
    for name, tensor in vae.state_dict().items():
        if name.startswith(("encoder.", "quant_conv.")) and not torch.equal(tensor.half(), old[name].half()):
            raise ValueError(f"the autoencoder's {name} is not the one that the transformer's latents were made with")
    vae.register_to_config(latents_mean=trained_with.config.latents_mean, latents_std=trained_with.config.latents_std)
    return vae


def _forget_origin(path: Path) -> None:
    # diffusers stores the folder from which a part was read, which is meaningless on another machine.
    config = json.loads(path.read_text("utf-8"))
    config.pop("_name_or_path", None)
    path.write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def _write_index(path: Path, classes: dict[str, str]) -> None:
    from diffusers import __version__ as diffusers_version
    from transformers import __version__ as transformers_version

    libraries = {"vae": "diffusers", "transformer": "plugins.families.multitalk.transformer"}
    index = {
        "_class_name": "MultiTalk",
        "_diffusers_version": diffusers_version,
        "_transformers_version": transformers_version,
        "license": "MIT",
        **{name: [libraries.get(name, "transformers"), kind] for name, kind in sorted(classes.items())},
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
    }
    path.write_text(json.dumps(index, indent=2) + "\n", "utf-8")


def main() -> None:
    """Read the command line and assemble."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the model's folder; its name is the preset's, tiny")
    parser.add_argument("--run", type=Path, required=True, help="folder of the transformer's training")
    parser.add_argument("--data", type=Path, required=True, help="folder of the clips it was trained on")
    parser.add_argument("--vae", type=Path, help="autoencoder with the same encoder and a better decoder")
    parser.add_argument("--loras", type=Path, help="folder of LoRA files")
    arguments = parser.parse_args()
    size = assemble(arguments.out, run=arguments.run, data=arguments.data, vae=arguments.vae, loras=arguments.loras)
    print(f"{arguments.out}: {size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
