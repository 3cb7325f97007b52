"""Get a model's published weights and lay them out as the engine reads them.

    python scripts/download_models.py --preset multitalk [--model-path FOLDER]

FOLDER is $MODEL_PATH or /runpod-volume/models. Wan's parts come as its Diffusers repository has them; the audio
weights of MultiTalk or InfiniteTalk are renamed and put into the transformer's folder beside them. What is there
already is not fetched again, and the folder's model_index.json is written last.

Nobody has run this against the hub yet, for want of a machine that reaches it: the layout is tested on small folders
(tests/test_download_models.py), the names of repositories and files are those of their public pages.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Fetches files of a repository that match patterns, at a revision, into a folder: huggingface_hub's snapshot_download.
Fetch = Callable[[str, tuple[str, ...], str | None, Path], None]

WAN = "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers"
WAN_PARTS = ("transformer", "vae", "text_encoder", "tokenizer", "image_encoder")
WAV2VEC2 = "TencentGameMate/chinese-wav2vec2-base"
#: The only revision of it with safetensors.
WAV2VEC2_REVISION = "refs/pr/1"
FUSIONX = ("vrgamedevgirl84/Wan14BT2VFusioniX", "FusionX_LoRa/Wan2.1_I2V_14B_FusionX_LoRA.safetensors")

ADAPTER = "audio-{:05d}.safetensors"
#: Bytes of one file of audio weights: as much is in memory at once.
SHARD = 2 * 2**30


@dataclass(frozen=True)
class Preset:
    """Where a model's audio weights are published."""

    repository: str
    file: str


PRESETS = {
    "multitalk": Preset("MeiGen-AI/MeiGen-MultiTalk", "multitalk.safetensors"),
    "infinitetalk": Preset("MeiGen-AI/InfiniteTalk", "multi/infinitetalk.safetensors"),
}


def download(name: str, folder: Path, fetch: Fetch, *, turbo: bool = True) -> Path:
    """Fill `folder` with the weights of preset `name` and return it."""
    preset = PRESETS[name]
    parts = folder / ".parts"
    fetch(WAN, tuple(f"{part}/*" for part in WAN_PARTS), None, folder)
    wav2vec2 = ("config.json", "preprocessor_config.json", "model.safetensors")
    fetch(WAV2VEC2, wav2vec2, WAV2VEC2_REVISION, folder / "audio_encoder")
    fetch(preset.repository, (preset.file,), None, parts)
    add_audio(folder / "transformer", parts / preset.file)
    if turbo:
        fetch(FUSIONX[0], (FUSIONX[1],), None, parts)
        (folder / "loras").mkdir(exist_ok=True)
        (parts / FUSIONX[1]).replace(folder / "loras" / Path(FUSIONX[1]).name)
    shutil.rmtree(parts)
    index = {"_class_name": "MultiTalk", "model": name, "untrained": False}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", "utf-8")
    return folder


def add_audio(transformer: Path, adapter: Path) -> None:
    """Make Wan's transformer folder one of ours: audio weights under our names, an index over all, our config."""
    from safetensors.torch import save_file

    stem = "diffusion_pytorch_model"
    weights = _wan_weights(transformer, stem)
    number = size = 0
    for number, shard in enumerate(_shards(adapter), 1):
        name = ADAPTER.format(number)
        save_file(shard, transformer / name)
        weights |= dict.fromkeys(shard, name)
    for name in set(weights.values()):
        size += (transformer / name).stat().st_size
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(weights.items()))}
    (transformer / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2), "utf-8")
    config = transformer / "config.json"
    ours = our_config(json.loads(config.read_text("utf-8")))
    config.write_text(json.dumps(ours, indent=2) + "\n", "utf-8")


def our_config(wan: dict[str, object]) -> dict[str, object]:
    """Return our transformer's config for Wan's: its values where both have the name, our defaults (14B) elsewhere."""
    import inspect

    from engine.multitalk.transformer import MultiTalkTransformer3DModel

    known = inspect.signature(MultiTalkTransformer3DModel.__init__).parameters
    return {"_class_name": "MultiTalkTransformer3DModel"} | {key: wan[key] for key in wan if key in known}


def _wan_weights(transformer: Path, stem: str) -> dict[str, str]:
    from safetensors import safe_open

    index = transformer / f"{stem}.safetensors.index.json"
    if index.is_file():
        found: dict[str, str] = json.loads(index.read_text("utf-8"))["weight_map"]
        # A second run finds its own index.
        return {key: name for key, name in found.items() if not name.startswith("audio-")}
    with safe_open(transformer / f"{stem}.safetensors", "pt") as file:
        return dict.fromkeys(file.keys(), f"{stem}.safetensors")


def _shards(adapter: Path) -> Iterator[dict[str, Any]]:
    from safetensors import safe_open

    from engine.multitalk.keys import to_engine

    shard: dict[str, Any] = {}
    filled = 0
    with safe_open(adapter, "pt") as file:
        for key in file.keys():  # noqa: SIM118 - not a dict
            tensor = file.get_tensor(key)
            if shard and filled + tensor.nbytes > SHARD:
                yield shard
                shard, filled = {}, 0
            shard[to_engine(key)] = tensor.contiguous()
            filled += tensor.nbytes
    yield shard


def _fetch(repository: str, patterns: tuple[str, ...], revision: str | None, into: Path) -> None:
    from huggingface_hub import snapshot_download

    snapshot_download(repository, revision=revision, allow_patterns=list(patterns), local_dir=into)


def main() -> None:
    """Read the command line and download."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="download_models.py"
    )
    parser.add_argument("--preset", choices=sorted(PRESETS), required=True)
    parser.add_argument("--model-path", type=Path, default=Path(os.environ.get("MODEL_PATH", "/runpod-volume/models")))
    parser.add_argument("--no-turbo", action="store_true", help="leave out the distilled LoRA of sampler=turbo")
    given = parser.parse_args()
    print(download(given.preset, given.model_path / given.preset, _fetch, turbo=not given.no_turbo))


if __name__ == "__main__":
    main()
